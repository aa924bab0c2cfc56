"""What people look at: overlays at the right place, pyramids, GeoJSON and the viewer."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from medmpi.data import DataError
from medmpi.slide import geojson
from medmpi.slide.detections import Detection, from_heatmap, read_csv, write_csv
from medmpi.slide.heatmap import Heatmap, HeatmapMeta
from medmpi.slide.overlay import region, write_png, write_pyramid
from medmpi.slide.reader import open_slide
from medmpi.slide.viewer import write_viewer
from tests.slide.conftest import write_slide

SHAPE = (801, 1203)  # odd, and no multiple of anything


def heatmap(scores, *, stride=16, shape=SHAPE, downsample=1.0, counts=None):
    meta = HeatmapMeta(
        "slide.tif", "0" * 16, 0, downsample, shape, tuple(round(s * downsample) for s in shape), (0.25, 0.25), stride,
        224, ("tumour",), "0" * 16,
    )  # fmt: skip
    counts = np.ones(scores.shape, np.uint32) if counts is None else counts
    return Heatmap(scores.astype(np.float32)[..., None], counts, meta)


@pytest.fixture
def checked(tmp_path):
    """A slide with a black square in each corner and the heatmap that is 1 exactly there."""
    image = np.full((*SHAPE, 3), 255, np.uint8)
    corners = [(slice(0, 96), slice(0, 96)), (slice(0, 96), slice(-96, None)), (slice(-96, None), slice(0, 96)),
               (slice(-96, None), slice(-96, None))]  # fmt: skip
    for corner in corners:
        image[corner] = 0
    write_slide(tmp_path / "slide.tif", image, levels=3)
    scores = (image[::16, ::16, 0] == 0).astype(float)
    return tmp_path / "slide.tif", image, heatmap(scores)


@pytest.mark.parametrize("downsample", [1.0, 2.0, 3.7])
def test_overlays_line_up_in_all_corners(checked, downsample):
    """To one stride: neither shift nor drift, on sides that are no multiples (slideflow#440)."""
    path, image, heat = checked
    h, w = (round(s / downsample) for s in SHAPE)
    with open_slide(path) as slide:
        picture = region(heat, slide, downsample, 0, 0, h, w)
        np.testing.assert_array_equal(picture[40:90, 60:200], region(heat, slide, downsample, 40, 60, 50, 140))
    hot = picture[..., 0].astype(int) - picture[..., 2] > 30  # turbo's red
    rows, columns = (
        np.minimum((np.arange(n) * downsample).astype(int), s - 1) for n, s in zip((h, w), SHAPE, strict=True)
    )
    black = image[np.ix_(rows, columns)][..., 0] == 0
    wrong = np.argwhere(hot != black)
    for y, x in wrong:
        y, x = y * downsample, x * downsample
        near = min(abs(y - 96), abs(y - (SHAPE[0] - 96)), abs(x - 96), abs(x - (SHAPE[1] - 96)))
        assert near <= 16 + downsample


def test_the_overlay_picture_shows_what_was_evaluated(checked, tmp_path):
    path, image, heat = checked
    heat.counts[20:, :] = 0
    with open_slide(path) as slide:
        write_png(tmp_path / "overlay.png", heat, slide)
    picture = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert picture.shape == image.shape
    np.testing.assert_array_equal(picture[20 * 16 + 8 :], image[20 * 16 + 8 :])
    assert (picture[: 19 * 16] != image[: 19 * 16]).mean() > 0.3


def test_the_pyramid_opens_as_a_slide(checked, tmp_path):
    path, image, heat = checked
    with open_slide(path) as slide:
        write_pyramid(tmp_path / "overlay.tif", heat, slide)
    with open_slide(tmp_path / "overlay.tif") as overlay:
        assert overlay.reader == "openslide"
        assert overlay.shapes[0] == image.shape[:2]
        assert len(overlay.shapes) == 4
        assert overlay.mpp == pytest.approx((0.25, 0.25), rel=1e-3)
        pixel = overlay.read(0, 30, 30, 1, 1)[0, 0].astype(int)
        assert pixel[0] - pixel[2] > 30


def test_regions_enclose_what_passes_and_keep_holes(tmp_path):
    scores = np.zeros((51, 76))
    scores[10:30, 10:40] = 0.9
    scores[18:22, 20:26] = 0.1
    scores[45:51, 70:76] = 0.8
    found = list(geojson.regions(heatmap(scores), 0.5))
    assert len(found) == 2
    big = max(found, key=lambda f: len(f["geometry"]["coordinates"]))
    outer, hole = (np.array(ring) for ring in big["geometry"]["coordinates"])
    assert outer.min(0) == pytest.approx((10 * 16 - 8, 10 * 16 - 8), abs=8)
    assert outer.max(0) == pytest.approx((39 * 16 + 8, 29 * 16 + 8), abs=8)
    assert hole.min(0) == pytest.approx((20 * 16 - 8, 18 * 16 - 8), abs=8)
    for feature in found:
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert (np.array(ring) >= 0).all()
            assert (np.array(ring) <= SHAPE[::-1]).all()
    for name in ("a.geojson", "a.geojson.gz"):
        assert geojson.write(tmp_path / name, [*found, *geojson.points([Detection(0.9, 5, 7)], "tumour")]) == 3
    plain = json.loads((tmp_path / "a.geojson").read_text())
    assert json.loads(gzip.decompress((tmp_path / "a.geojson.gz").read_bytes())) == plain
    assert plain["features"][2]["geometry"] == {"type": "Point", "coordinates": [5, 7]}
    assert plain["features"][0]["properties"]["classification"]["name"] == "tumour"


def test_non_maximum_suppression_by_hand():
    scores = np.zeros((20, 20))
    scores[5, 5], scores[5, 8], scores[15, 15], scores[0, 19] = 0.9, 0.8, 0.7, 0.4
    heat = heatmap(scores, stride=10, shape=(200, 200), downsample=2.0)
    found = from_heatmap(heat, radius=70.0, threshold=0.5)
    assert [(round(d.score, 6), d.x, d.y) for d in found] == [(0.9, 100.0, 100.0), (0.7, 300.0, 300.0)]
    near = from_heatmap(heat, radius=59.0, threshold=0.3)
    assert [(d.x, d.y) for d in near] == [(100, 100), (160, 100), (300, 300), (380, 0)]
    heat.counts[15, 15] = 0
    assert len(from_heatmap(heat, radius=70.0)) == 1


def test_detections_as_csv(tmp_path):
    found = [Detection(0.123456789, 10.0, 20.5), Detection(1e-7, 0.0, 3.0)]
    write_csv(tmp_path / "a.csv", found)
    assert read_csv(tmp_path / "a.csv") == found
    (tmp_path / "b.csv").write_text("0.5, 1, 2\n\n0.25,3,4\n")  # the challenge's own files have no header
    assert read_csv(tmp_path / "b.csv") == [Detection(0.5, 1, 2), Detection(0.25, 3, 4)]
    (tmp_path / "c.csv").write_text("score,x,y\n0.5,1\n")
    with pytest.raises(DataError, match="line 2"):
        read_csv(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("nan,1,2\n")
    with pytest.raises(DataError, match="not finite"):
        read_csv(tmp_path / "c.csv")


def test_the_viewer_needs_no_server(checked, tmp_path):
    path, _, heat = checked
    with open_slide(path) as slide:
        page = write_viewer(tmp_path / "viewer", heat, slide).read_text()
    assert "http://" not in page.replace("http://schemas.microsoft.com", "")
    assert "https://" not in page
    assert 'drawer: "canvas"' in page  # WebGL may not use pictures of file:// pages
    for name in ("openseadragon.min.js", "openseadragon.LICENSE.txt", "heatmap.png", "slide_files/0/0_0.jpg"):
        assert (tmp_path / "viewer" / name).exists()
    levels = sorted(int(p.name) for p in (tmp_path / "viewer" / "slide_files").iterdir())
    assert levels == list(range(12))  # 2^11 holds 1203
    with Image.open(tmp_path / "viewer" / "slide_files" / "11" / "2_1.jpg") as tile:
        assert tile.size == (1203 - 1024, 801 - 512)
        assert np.asarray(tile)[-50, -50].max() < 30  # the black corner
    with Image.open(tmp_path / "viewer" / "slide_files" / "9" / "0_0.jpg") as tile:
        assert tile.size == (301, 201)
    heat_picture = np.asarray(Image.open(tmp_path / "viewer" / "heatmap.png"))
    assert heat_picture.shape == (51, 76, 4)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")
def test_slide_and_heatmap_line_up_in_a_browser(checked, tmp_path):
    """The page as a browser draws it from file://: hot corners lie over black ones, nothing else is hot."""
    path, _, heat = checked
    with open_slide(path) as slide:
        write_viewer(tmp_path / "a b ü", heat, slide)  # names as people give them
    page = tmp_path / "frame.html"  # a browser without a window resizes pages as it takes the picture, but no frames
    page.write_text('<iframe src="a b ü/index.html" style="border:0;width:1000px;height:800px">', "utf-8")
    shot = tmp_path / "shot.png"
    words = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,1000", "--virtual-time-budget=20000",
        f"--screenshot={shot}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert shot.exists(), done.stderr
    with Image.open(shot) as picture:
        seen = np.asarray(picture.convert("RGB"))[8 + 41 : 808, 8:1008].astype(int)  # below the header
    tinted = seen.min(-1) < 250  # the page is white, a slide under a heatmap is not
    y, x = np.flatnonzero(tinted[:, :700].any(1)), np.flatnonzero(tinted[500:].any(0))  # beside the small map
    seen = seen[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    assert min(seen.shape[:2]) > 500
    rows, columns = ((np.arange(n) + 0.5) * side / n for n, side in zip(seen.shape[:2], SHAPE, strict=True))
    step = heat.meta.step
    inside, around = (
        np.logical_and.outer(*(
            np.minimum(place, side - place) < 96 + margin for place, side in zip((rows, columns), SHAPE, strict=True)
        ))
        for margin in (-step, step)
    )  # fmt: skip
    hot_on_black = (seen[..., 0] > 50) & (seen[..., 0] < 95) & (seen[..., 1:].max(-1) < 30)
    cold_on_white = seen.min(-1) > 180
    navigator = np.logical_and.outer(rows < SHAPE[0] * 0.3, columns > SHAPE[1] * 0.75)  # a map that lies over a corner
    assert hot_on_black[inside & ~navigator].mean() > 0.95
    assert cold_on_white[~around & ~navigator].mean() > 0.95
    # the outermost points are at 80 and at 16 after 1107 and 705; their cells end half a step further
    for hot, side, first, last in ((hot_on_black.any(0), 1203, 88, 1112), (hot_on_black.any(1), 801, 88, 712)):
        at = np.flatnonzero(hot) * side / len(hot)
        gap = int(np.argmax(np.diff(at)))
        assert np.abs(at[gap : gap + 2] - (first, last)).max() < 7
