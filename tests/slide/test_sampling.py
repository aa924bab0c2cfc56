"""Training patches by S4's rules: 50 % or nothing, split by slide, nothing missing without a word."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medmpi.data import open_dataset
from medmpi.slide.commands.train_patches import split_slides
from medmpi.slide.main import main
from medmpi.slide.sampling import TUMOUR, SampleOptions, sample_slide
from medmpi.slide.truth import Annotation, open_truth, read_annotation
from tests.slide.conftest import write_slide


@pytest.fixture
def slides(tmp_path):
    """Tissue whose tumour is darker, so that a patch shows what it is."""
    rng = np.random.default_rng(0)
    for name in ("tumor_1", "tumor_2", "tumor_3", "normal_1", "normal_2", "normal_3"):
        image = np.full((1400, 1800, 3), 245, np.uint8)
        image[200:1300, 200:1700] = (170, 90, 160)
        image[200:1300, 200:1700] += rng.integers(0, 12, (1100, 1500, 3)).astype(np.uint8)
        if name.startswith("tumor"):
            image[400:900, 500:1100] = (140, 50, 140)
            square = [[500, 400], [1100, 400], [1100, 900], [500, 900]]
            (tmp_path / f"{name}.json").write_text(json.dumps({"positive": [{"vertices": square}]}))
        write_slide(tmp_path / f"{name}.tif", image, compression="deflate")
    return tmp_path


def test_half_is_tumour_and_nothing_is_normal(slides):
    annotation = read_annotation(slides / "tumor_1.json")
    options = SampleOptions(tumour=30, normal=40, noise=0, crop=256)
    found = sample_slide(slides / "tumor_1.tif", annotation, options)
    assert (found.found(1, 1), found.found(0, 1)) == (30, 40)
    for image, label, (x, y) in zip(found.images, found.labels, found.places, strict=True):
        dark = (image[..., 1] < 70).mean()
        share = annotation.mask((256, 256), 1.0, (y, x)).mean()
        assert abs(dark - share) < 0.01
        assert share >= 0.5 if label == TUMOUR else share == 0
    again = sample_slide(slides / "tumor_1.tif", annotation, options)
    np.testing.assert_array_equal(found.images, again.images)


def test_crops_and_noise(slides):
    plain = sample_slide(slides / "normal_1.tif", None, SampleOptions(normal=5, noise=0))
    noisy = sample_slide(slides / "normal_1.tif", None, SampleOptions(normal=5, noise=20, copies=3))
    assert plain.images.shape == (5, 224, 224, 3)
    assert noisy.images.shape == (15, 224, 224, 3)
    assert not plain.labels.any()
    copies = noisy.images.reshape(5, 3, 224, 224, 3).astype(int).mean((2, 3))
    assert np.ptp(copies, axis=1).max() > 3


def test_stains_are_normalised_or_the_slide_is_told(slides, capsys):
    words = ["train-patches", str(slides), "--truth", str(slides), "--out", str(slides / "x.npz"), "--stain", "macenko"]
    assert main([*words, "--tumour", "2", "--normal", "2", "--crop", "64"]) in (0, 3)
    record = json.loads((slides / "x.json").read_text())["slides"]
    said = capsys.readouterr().err
    for entry in record:
        assert "error" not in entry or entry["error"] in said


def test_an_npz_for_training(slides, capsys):
    out = slides / "set.npz"
    words = ["train-patches", str(slides), "--truth", str(slides), "--out", str(out), "--tumour", "4", "--normal", "6"]
    assert main([*words, "--val", "0.2", "--test", "0.2", "--crop", "64", "--patch", "64"]) == 0
    dataset = open_dataset(f"npz:{out}", task=None, image_size=None, seed=0, val_fraction=0.1)
    assert dataset.classes == ("normal", "tumour")
    assert sum(len(dataset.splits[s]) for s in ("train", "val", "test")) == 3 * 10 + 3 * 6
    places = {e["slide"]: e["split"] for e in json.loads(out.with_suffix(".json").read_text())["slides"]}
    assert sorted(places.values()).count("val") == 1
    assert "medmpi train --data npz:" in capsys.readouterr().out
    again = slides / "again.npz"
    words[words.index(str(out))] = str(again)
    assert main([*words, "--val", "0.2", "--test", "0.2", "--crop", "64", "--patch", "64", "--threads", "3"]) == 0
    with np.load(out) as first, np.load(again) as second:  # whatever slide was done when
        assert all(np.array_equal(first[name], second[name]) for name in first.files)


def test_what_is_missing_is_told(slides, capsys):
    (slides / "tumor_2.json").unlink()
    (slides / "tumor_3.json").write_text(json.dumps({"positive": [{"vertices": [[500, 400], [510, 400], [510, 410]]}]}))
    words = ["train-patches", str(slides), "--truth", str(slides), "--out", str(slides / "set.npz")]
    assert main([*words, "--tumour", "2", "--normal", "2", "--crop", "64"]) == 3
    said = capsys.readouterr().err
    assert "tumor_2.tif: has no annotation" in said
    assert "tumor_3.tif: 0 of 2 tumour patches were found" in said


def test_a_slide_is_on_one_side_whatever_its_name():
    names = [f"{i:016x}" for i in range(40)]
    splits = split_slides([*names, *names], 0.25, 0.25, 0)
    assert splits[:40] == splits[40:]
    assert [splits[:40].count(s) for s in ("train", "val", "test")] == [20, 10, 10]


def test_masks_are_truth_too(slides):
    import tifffile

    mask = np.zeros((1400, 1800), np.uint8)
    mask[400:900, 500:1100] = 1
    (slides / "masks").mkdir()
    tifffile.imwrite(slides / "masks" / "tumor_1.tif", mask, tile=(256, 256), compression="deflate")
    polygons = read_annotation(slides / "tumor_1.json")
    image = open_truth(slides / "masks" / "tumor_1.tif")
    for shape, downsample, origin in (((44, 57), 32.0, (0, 0)), ((256, 256), 1.0, (300, 400)), ((99, 50), 3.7, (5, 9))):
        a, b = (truth.mask(shape, downsample, origin) for truth in (polygons, image))
        assert (a != b).sum() <= 2 * (a.sum() ** 0.5 * 4)
    found = sample_slide(slides / "tumor_1.tif", image, SampleOptions(tumour=5, normal=5, noise=0))
    assert (found.found(1, 1), found.found(0, 1)) == (5, 5)


def test_masks_are_of_pixel_centres():
    square = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 50.0], [10.0, 50.0]])
    mask = Annotation((square,)).mask((60, 60), 1.0)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), columns.min()) in ((20, 10), (19, 9))
    assert abs(int(mask.sum()) - 600) <= 60
    shifted = Annotation((square,)).mask((60, 60), 1.0, (5, 3))
    np.testing.assert_array_equal(shifted[:50, :50], mask[5:55, 3:53])
