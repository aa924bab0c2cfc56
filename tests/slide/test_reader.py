"""Readers: two libraries, one interface, the same pixels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medmpi.data import DataError
from medmpi.slide.prepare import PrepareOptions, prepare
from medmpi.slide.reader import BadTile, open_slide, slide_id
from medmpi.slide.reader_openslide import OpenSlideReader
from medmpi.slide.reader_tiff import TiffReader
from medmpi.slide.store import Store, open_source
from tests.slide.conftest import tifffile, tissue_slide, write_slide

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "slides"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data beside the checkout")


@pytest.mark.parametrize(
    ("reader", "subifds"),
    [(OpenSlideReader, False), (TiffReader, False), (TiffReader, True), (open_slide, False), (open_slide, True)],
)
def test_levels_microns_and_regions(tmp_path, reader, subifds):
    image = tissue_slide((700, 900))
    write_slide(tmp_path / "a.tif", image, levels=3, compression="deflate", subifds=subifds)
    with reader(tmp_path / "a.tif") as slide:
        assert slide.shapes == ((700, 900), (350, 450), (175, 225))
        assert slide.downsamples == pytest.approx((1, 2, 4), rel=1e-3)
        assert slide.mpp == pytest.approx((0.25, 0.25))
        np.testing.assert_array_equal(slide.read(0, 100, 250, 300, 400), image[100:400, 250:650])
        np.testing.assert_array_equal(slide.read(0, 0, 0, 700, 900), image)


def test_both_readers_agree_on_every_level(tmp_path):
    write_slide(tmp_path / "a.tif", tissue_slide((700, 900)), levels=3, compression="jpeg")
    with OpenSlideReader(tmp_path / "a.tif") as one, TiffReader(tmp_path / "a.tif") as other:
        for level, (h, w) in enumerate(one.shapes):
            a, b = (slide.read(level, 0, 0, h, w).astype(int) for slide in (one, other))
            assert np.abs(a - b).max() <= 3  # two JPEG decoders


def test_what_is_outside_is_glass_at_its_place(tmp_path):
    image = tissue_slide((300, 200))
    write_slide(tmp_path / "a.tif", image)
    padded = np.pad(image, ((112, 112), (112, 112), (0, 0)), constant_values=255)
    with open_slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, -112, -112, 524, 424), padded)
        assert (slide.read(0, 400, 0, 50, 60) == 255).all()
        assert (slide.read(0, -50, -70, 50, 70, fill=7) == 7).all()


def test_striped_and_grey_tiffs_are_read(tmp_path):
    import tifffile

    image = tissue_slide((300, 200))
    tifffile.imwrite(tmp_path / "stripes.tif", image, photometric="rgb", rowsperstrip=32, bigtiff=True)
    tifffile.imwrite(tmp_path / "grey.tif", image[..., 0], tile=(64, 64))
    with open_slide(tmp_path / "stripes.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 10, 20, 200, 100), image[10:210, 20:120])
    with open_slide(tmp_path / "grey.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 10, 20, 200, 100)[..., 1], image[10:210, 20:120, 0])


@pytest.mark.parametrize("reader", [OpenSlideReader, TiffReader])
def test_a_bad_tile_is_an_error_and_the_others_still_read(tmp_path, reader):
    """After an error OpenSlide's handle is dead; the reader opens it again."""
    import tifffile

    path = tmp_path / "a.tif"
    write_slide(path, tissue_slide((512, 512)), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[5], page.databytecounts[5]
    with path.open("rb+") as file:
        file.seek(start)
        file.write(b"\x00" * size)
    with reader(path) as slide:
        good = slide.read(0, 0, 0, 100, 100)
        for _ in range(2):
            with pytest.raises(BadTile, match=r"a\.tif: level 0, 20x20 at \(140, 140\)"):
                slide.read(0, 140, 140, 20, 20)
            np.testing.assert_array_equal(slide.read(0, 0, 0, 100, 100), good)
            slide.read(0, 300, 300, 100, 100)


def test_a_slide_is_known_by_its_content(tmp_path):
    write_slide(tmp_path / "a.tif", tissue_slide((300, 200)))
    shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert slide_id(tmp_path / "a.tif") == slide_id(tmp_path / "b.tif")
    content = bytearray((tmp_path / "b.tif").read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / "b.tif").write_bytes(content)
    assert slide_id(tmp_path / "a.tif") != slide_id(tmp_path / "b.tif")


@pytest.mark.parametrize(("content", "why"), [(b"not a slide", "openslide: .*tifffile: "), (b"", "tifffile: ")])
def test_what_no_reader_knows_is_one_error_with_what_each_said(tmp_path, content, why):
    (tmp_path / "x.svs").write_bytes(content)
    with pytest.raises(DataError, match=why):
        open_slide(tmp_path / "x.svs")


def test_missing_files_and_levels_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_slide(tmp_path / "none.svs")
    with pytest.raises(DataError, match=r"without \.dcm files"):
        open_slide(tmp_path)
    write_slide(tmp_path / "a.tif", tissue_slide((300, 200)), levels=2)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.level_for(0.5) == 1
        assert slide.level_for(None) == 0
        with pytest.raises(DataError, match=r"levels of 0\.250, 0\.500 um a pixel, 1\.0 was asked for"):
            slide.level_for(1.0)


def test_dicom_slides_are_folders(tmp_path):
    pytest.importorskip("pydicom", reason="needs the 'io' extra")
    from tests.slide.dicom_slide import write_dicom_slide

    image = tissue_slide((700, 900))
    write_dicom_slide(tmp_path / "slide", image)
    for path in (tmp_path / "slide", tmp_path / "slide" / "level0.dcm"):
        with open_slide(path) as slide:
            assert slide.shapes == ((700, 900), (350, 450))
            assert slide.mpp == pytest.approx((0.25, 0.25))
            region = slide.read(0, 100, 250, 300, 400).astype(int)
            assert np.abs(region - image[100:400, 250:650]).mean() < 2  # JPEG
    shutil.copytree(tmp_path / "slide", tmp_path / "copy")
    assert slide_id(tmp_path / "slide") == slide_id(tmp_path / "copy")
    folder = tmp_path / "stores"
    folder.mkdir()
    store, meta, _ = prepare(tmp_path / "slide", folder, PrepareOptions(pixels="none"))
    with Store(store) as opened, open_source(opened) as source:
        assert source.read(0, 0, 0, 224, 224).shape == (224, 224, 3)
    assert meta.slide_bytes > 10_000


@needs_data
def test_a_scanner_s_slide():
    with open_slide(DATA / "CMU-1-Small-Region.svs") as slide:
        assert slide.reader == "openslide"
        assert slide.shapes == ((2967, 2220),)
        assert slide.mpp == pytest.approx((0.499, 0.499))
        assert slide.read(0, 1000, 1000, 224, 224).mean() < 240
        with TiffReader(DATA / "CMU-1-Small-Region.svs") as other:
            a, b = (s.read(0, 500, 700, 300, 300).astype(int) for s in (slide, other))
            assert np.abs(a - b).mean() < 1


@needs_data
def test_an_unreadable_slide_is_refused():
    with pytest.raises(DataError), open_slide(DATA / "unreadable.svs") as slide:
        slide.read(0, 0, 0, *slide.shapes[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rgba", {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("16 bits", {"photometric": "rgb"}),
        ("planes", {"photometric": "rgb", "planarconfig": "separate"}),
        ("palette", {"photometric": "palette"}),
        ("white is zero", {"photometric": "miniswhite"}),
        ("jpeg2000", {"photometric": "rgb", "compression": "jpeg2000"}),
    ],
)
def test_colours_of_any_kind_are_rgb(tmp_path, kind, options):
    """A palette's numbers and the like are never taken for colours."""
    want = tissue_slide((300, 260))
    image, path = want, tmp_path / "a b ü.tif"
    if kind == "rgba":
        image = np.dstack([want, np.full(want.shape[:2], 255, np.uint8)])
    elif kind == "16 bits":
        image = want.astype(np.uint16) * 257
    elif kind == "planes":
        image = np.ascontiguousarray(np.moveaxis(want, -1, 0))
    elif kind == "palette":
        image = want[..., 0]
        table = np.random.default_rng(0).integers(0, 256, (3, 256))
        options = {**options, "colormap": (table * 257).astype(np.uint16)}
        want = np.moveaxis(table, 0, -1)[image]
    elif kind == "white is zero":
        image = 255 - want[..., 0]
        want = np.repeat(want[..., :1], 3, axis=-1)
    tifffile.imwrite(path, image, tile=(128, 128), metadata=None, **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, *want.shape[:2]), want)


def test_floating_point_is_refused_and_odd_resolutions_are_none(tmp_path):
    image = tissue_slide((300, 260))
    tifffile.imwrite(tmp_path / "float.tif", image.astype(np.float32), tile=(128, 128), photometric="rgb")
    with pytest.raises(DataError, match="float32"):
        open_slide(tmp_path / "float.tif")
    for levels in (1, 3):  # by either reader
        path = tmp_path / f"{levels}.tif"
        with tifffile.TiffWriter(path) as file:
            for level in range(levels):
                file.write(
                    image[:: 2**level, :: 2**level], tile=(128, 128), photometric="rgb", metadata=None,
                    resolution=(72, 72), resolutionunit="INCH", subfiletype=1 if level else 0,
                )  # fmt: skip
        with open_slide(path) as slide:
            assert slide.mpp is None
            with pytest.raises(DataError, match="microns per pixel"):
                slide.level_for(0.5)
