"""Images with masks: both layouts, mixed formats, several sizes."""

import numpy as np
import pytest
from PIL import Image

from medmpi.data import DataError, Reading, open_dataset
from medmpi.data.medical import Levels


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flat(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        h, w = 20 + i, 30 - i
        mask = np.zeros((h, w), np.uint8)
        mask[5:12, 5:12] = 255
        _save(tmp_path / f"{i}.png", (mask // 2 + rng.integers(0, 50, (h, w))).astype(np.uint8))
        _save(tmp_path / f"{i}_mask.png", mask)
    return tmp_path


def test_masks_beside_their_images(flat):
    dataset = open_dataset(f"pairs:{flat}", image_size=16, val_fraction=0.2)
    assert (dataset.task, dataset.classes) == ("segmentation", ("background", "foreground"))
    images, masks = dataset.splits["train"].read(np.arange(6))
    assert images[masks == 1].mean() > images[masks == 0].mean() + 80
    with pytest.raises(DataError, match="give an image size"):
        open_dataset(f"pairs:{flat}")
    with pytest.raises(DataError, match="for segmentation"):
        open_dataset(f"pairs:{flat}", task="classification")
    (flat / "3_mask.png").unlink()
    with pytest.raises(DataError, match=r"3.png: it has no mask"):
        open_dataset(f"pairs:{flat}", image_size=16)


def test_padding_keeps_the_pixels(flat):
    dataset = open_dataset(f"pairs:{flat}?fit=pad", val_fraction=0)
    assert dataset.image_size == (32, 32)
    images, masks = dataset.splits["train"].read(np.arange(10))
    assert (masks == 1).sum(axis=(1, 2)).tolist() == [49] * 10
    original = np.asarray(Image.open(flat / "0.png"))
    assert np.array_equal(images[0, 6:26, 1:31, 0], original)
    assert not images[0, :6].any()
    mask = np.asarray(Image.open(flat / "0_mask.png")) // 255
    assert np.array_equal(dataset.reading.unfit(masks[0], (20, 30)), mask)


def test_mixed_formats(tmp_path):
    nibabel, tifffile = pytest.importorskip("nibabel"), pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 10), np.uint8)
    mask[2:6, 3:7] = 1
    image = (mask.astype(int) * 900 + rng.integers(0, 99, mask.shape)).astype(np.uint16)
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    for i in range(3):
        Image.fromarray(image).save(tmp_path / "images" / f"png{i}.png")
        tifffile.imwrite(tmp_path / "images" / f"tif{i}.tif", image)
        _save(tmp_path / "masks" / f"png{i}_mask.png", mask)
        _save(tmp_path / "masks" / f"tif{i}.tif", mask)
        # A volume of two slices as (i, j, k) with rows upwards.
        volume = np.stack([image[::-1].T] * 2, axis=2)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), tmp_path / "images" / f"nii{i}.nii.gz")
        labels = np.stack([mask[::-1].T] * 2, axis=2)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "masks" / f"nii{i}.nii.gz")
    dataset = open_dataset(f"pairs:{tmp_path}?bits=10", val_fraction=0.2)
    total = sum(len(split) for split in dataset.splits.values())
    assert total == 3 + 3 + 3 * 2
    for split in dataset.splits.values():
        images, masks = split.read(np.arange(len(split)))
        assert np.array_equal(masks, np.broadcast_to(mask, masks.shape))
        assert images[masks == 1].min() > images[masks == 0].max()


def test_reading_survives_json():
    import json

    for reading in (Reading(), Reading(Levels((40.0, 400.0), 12, "fill"), 1, (48, 64))):
        assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    with pytest.raises(ValueError, match="window"):
        Reading.from_json({"levels": {"window": "wide"}})


def test_real_nuclei(real_data):
    folder = real_data("nuclei_segmentation")
    dataset = open_dataset(f"pairs:{folder}?masks=binary", image_size=64)
    assert sum(len(s) for s in dataset.splits.values()) == 132
    assert dataset.channels == 3


def test_a_long_opening_says_how_far_it_is(flat, monkeypatch):
    monkeypatch.setattr("medmpi.data.waiting._INTERVAL", 0.0)
    lines = []
    open_dataset(f"pairs:{flat}", image_size=16, val_fraction=0, say=lines.append)
    assert "images: 10 of 10 files, about 0 s left" in lines
    assert any(line.startswith("masks: ") for line in lines)
    before = len(lines)
    open_dataset(f"pairs:{flat}", image_size=16, val_fraction=0)
    assert len(lines) == before
