"""Tissue, the patch grid and the store: lean, whole, and with every pixel where it belongs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.slide.grid import group_count, group_size, morton_order, patches_with_tissue, points
from medmpi.slide.main import main
from medmpi.slide.prepare import NoTissue, PrepareOptions, prepare
from medmpi.slide.reader import BadTile, open_slide
from medmpi.slide.store import GroupPixels, Store, open_source
from medmpi.slide.tissue import find_tissue, thumbnail
from tests.slide.conftest import tissue_slide, write_slide


def test_seed_s_numbers_of_patches_and_groups():
    assert group_size(400 * 602_112, 448 * 448 * 3) == 400  # S4: 230 MiB
    assert group_count(22_199, 400) == 56
    assert PrepareOptions().patch_bytes == 602_112
    assert PrepareOptions(memory=919 << 20).patches_per_group == 1600
    with pytest.raises(ValueError, match="expected room for one patch"):
        group_size(1000, 602_112)


def turned(picture, angle):
    """The picture with all hues turned."""
    hsv = K.rgb_to_hsv(np.ascontiguousarray(picture))
    hsv[..., 0] = (hsv[..., 0] + angle) % 1
    return (K.hsv_to_rgb(hsv) * 255).round().astype(np.uint8)


def two_stains(seed=0):
    """Purple and red tissue, whose hues lie on both sides of the seam, on noisy glass."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(238, 252, (120, 150, 3))
    picture[20:70, 30:90] = (150, 60, 160) + rng.integers(-12, 12, (50, 60, 3))
    picture[60:100, 80:130] = (230, 130, 140) + rng.integers(-12, 12, (40, 50, 3))
    truth = np.zeros((120, 150), bool)
    truth[20:70, 30:90] = truth[60:100, 80:130] = True
    return picture.astype(np.uint8), truth


@pytest.mark.parametrize("angle", [0.0, 0.1, 0.21, 0.5, 0.83])
def test_hue_is_a_circle(angle):
    """Tissue whose hues pass the seam is found whole, wherever the seam is."""
    picture, truth = two_stains()
    mask = find_tissue(turned(picture, angle) if angle else picture).mask
    assert (mask == truth).mean() > 0.995


def test_empty_glass_has_no_tissue(tmp_path):
    rng = np.random.default_rng(0)
    glass = rng.integers(240, 250, (700, 900, 3)).astype(np.uint8)
    write_slide(tmp_path / "a.tif", glass)
    with pytest.raises(NoTissue, match="no tissue was found"):
        prepare(tmp_path / "a.tif", tmp_path, PrepareOptions())
    assert not list(tmp_path.glob("*.h5"))
    assert list(tmp_path.glob("*.mask.png"))


def test_the_value_limits_training_slides():
    picture, truth = two_stains()
    picture[30:40, 40:50] = (60, 10, 50)  # a fold, too dark
    with_value = find_tissue(picture, mode="hsv").mask
    assert not with_value[32:38, 42:48].any()
    assert find_tissue(picture).mask[32:38, 42:48].all()
    assert with_value[truth].mean() > 0.5
    with pytest.raises(ValueError, match="mode is 'rgb'"):
        find_tissue(picture, mode="rgb")


@pytest.mark.parametrize("levels", [1, 4, 6])
def test_thumbnails_do_not_depend_on_the_pyramid(tmp_path, levels):
    image = tissue_slide((1000, 1300))
    write_slide(tmp_path / "a.tif", image, levels=levels)
    with open_slide(tmp_path / "a.tif") as slide:
        small, bad = thumbnail(slide)
    padded = np.pad(image, ((0, 24), (0, 12), (0, 0)), constant_values=255).astype(float)
    want = padded.reshape(32, 32, 41, 32, 3).mean((1, 3))
    assert small.shape == (32, 41, 3)
    assert not bad.any()
    assert np.abs(small[:30, :38] - want[:30, :38]).max() < 12


def test_any_tissue_pixel_makes_a_patch():
    mask = np.zeros((10, 10), bool)
    mask[6, 0] = mask[7, 9] = True  # 7 mask pixels a patch: the first and the second row
    np.testing.assert_array_equal(patches_with_tissue(mask, (300, 310), 32), [[True, False], [False, True]])
    assert not patches_with_tissue(mask, (300, 310), 32, least=0.5).any()


@pytest.mark.parametrize("stride", [1, 14, 16, 50, 64, 128, 224, 300])
def test_patches_own_every_point_once(stride):
    owned = []
    for i in range(4):
        p = points(i, 801, stride, 224)
        owned += range(p.first, p.first + p.count)
        assert p.start == p.first * stride - 112
        assert all(i * 224 <= k * stride < min((i + 1) * 224, 801) for k in range(p.first, p.first + p.count))
    assert owned == list(range(-(-801 // stride)))


def test_groups_are_compact():
    cells = np.argwhere(np.ones((32, 32), bool)).astype(np.int32)
    ordered = cells[morton_order(cells)]
    assert {tuple(c) for c in ordered.tolist()} == {tuple(c) for c in cells.tolist()}
    for first in range(0, 1024, 64):
        assert np.ptp(ordered[first : first + 64], axis=0).max() == 7


@pytest.mark.parametrize("pixels", ["webp", "none"])
def test_every_tile_has_its_context(tmp_path, pixels):
    """S4-11: 112 pixels at every side; the slide's own, or glass where it ends; nothing is shifted (S4-42)."""
    image = tissue_slide((700, 1000))
    write_slide(tmp_path / "a.tif", image)
    path, meta, _ = prepare(tmp_path / "a.tif", tmp_path, PrepareOptions(group_size=4, pixels=pixels))
    padded = np.pad(image, ((112, 400), (112, 400), (0, 0)), constant_values=255)
    with Store(path) as store, open_source(store) as slide:
        seen = 0
        for group in range(meta.groups):
            source = GroupPixels(store, group, slide if pixels == "none" else None)
            for r, c in store.group_patches(group).tolist():
                tile = source.region(224 * r - 112, 224 * c - 112, 448, 448)
                np.testing.assert_array_equal(tile, padded[224 * r : 224 * r + 448, 224 * c : 224 * c + 448])
                assert store.lookup[r, c] == seen
                seen += 1
        assert seen == meta.patches == (store.lookup >= 0).sum()
        with pytest.raises(DataError, match="has no group 99"):
            store.read_group(99)


def test_pixels_are_stored_once(tmp_path):
    image = tissue_slide((900, 900))
    write_slide(tmp_path / "a.tif", image)
    path, meta, _ = prepare(tmp_path / "a.tif", tmp_path, PrepareOptions(group_size=3, tissue="all"))
    with Store(path) as store:
        assert len(store._where) == meta.patches == 25
    assert path.stat().st_size < meta.patches * 602_112 / 8


def test_an_existing_store_is_kept_and_another_option_makes_it_anew(tmp_path):
    write_slide(tmp_path / "a.tif", tissue_slide((500, 500)))
    options = PrepareOptions(group_size=4)
    path, _, _ = prepare(tmp_path / "a.tif", tmp_path, options)
    before = path.stat().st_mtime_ns
    assert "skipped" in prepare(tmp_path / "a.tif", tmp_path, options)[2]
    assert path.stat().st_mtime_ns == before
    _, meta, _ = prepare(tmp_path / "a.tif", tmp_path, replace(options, group_size=2))
    assert meta.group_size == 2
    assert not list(tmp_path.glob(".*"))


def test_bad_tiles_are_recorded_with_their_cells(tmp_path):
    import tifffile

    path = tmp_path / "a.tif"
    write_slide(path, tissue_slide((672, 672)), tile=224 // 16 * 16, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[2], page.databytecounts[2]
    good, _, _ = prepare(path, tmp_path, PrepareOptions(tissue="all", pixels="none"))
    mask = next(tmp_path.glob("*.mask.png"))
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\x00" * size
    assert mask.exists()
    with Store(good) as store:
        meta = store.meta
    path.write_bytes(content)
    from medmpi.slide.store import write_store

    with open_slide(path) as slide:
        write_store(tmp_path / "bad.h5", slide, np.ones((3, 3), bool), lambda n: replace(meta, pixels="webp"))
    with Store(tmp_path / "bad.h5") as store:
        assert store.bad == {(0, 2)}
        source = GroupPixels(store, 0)
        source.region(112 + 224, 0, 200, 200)
        with pytest.raises(BadTile, match="could not be read"):
            source.region(0, 400, 100, 100)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    write_slide(tmp_path / "a.tif", tissue_slide((500, 500)))
    path, _, _ = prepare(tmp_path / "a.tif", tmp_path, PrepareOptions(group_size=4))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="is not a slide store"):
        Store(tmp_path / "other.h5")
    content = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="prepare the slide again"):
        Store(tmp_path / "cut.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(DataError, match="schema version 99"):
        Store(path)


def test_coordinates_refuse_a_changed_slide(tmp_path):
    write_slide(tmp_path / "a.tif", tissue_slide((500, 500)))
    path, _, _ = prepare(tmp_path / "a.tif", tmp_path, PrepareOptions(pixels="none"))
    write_slide(tmp_path / "a.tif", tissue_slide((500, 500), seed=9))
    with Store(path) as store, pytest.raises(DataError, match="other content"):
        open_source(store)


@pytest.mark.parametrize("limit", [0, 20_000, 50_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, limit):
    """HDF5 ends the process where it cannot write; what a disk takes is limited here by the size of a file."""
    write_slide(tmp_path / "a.tif", tissue_slide((900, 900)), compression="deflate")
    code = (
        "import resource, sys; from medmpi.slide.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    words = ["prepare", str(tmp_path / "a.tif"), "--out", str(tmp_path / "stores")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(limit), *words], capture_output=True, text=True, timeout=400, check=False,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode in (1, 3), done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in (tmp_path / "stores").glob("*") if p.suffix == ".h5" or ".tmp" in p.name]
    assert main([*words, "--quiet"]) == 0
    (path,) = (tmp_path / "stores").glob("*.h5")
    with Store(path) as store:
        assert store.meta.patches > 4
