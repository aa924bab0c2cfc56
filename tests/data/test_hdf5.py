"""Arrays in HDF5: one file or shards, and files that lack something."""

import json
import subprocess

import numpy as np
import pytest

from medmpi.data import DataError, open_dataset

h5py = pytest.importorskip("h5py")


def _images(n, shape=(8, 6), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (n, *shape), dtype=dtype)


def _write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            if name == "classes":
                file.attrs["classes"] = value
            else:
                file.create_dataset(name, data=value, chunks=None if np.ndim(value) < 3 else (1, *np.shape(value)[1:]))
    return path


def test_one_file_with_groups(tmp_path):
    images, labels = _images(40), np.arange(40) % 2
    groups = [f"p{i // 4}" for i in range(40)]
    file = _write(tmp_path / "a.h5", images=images, labels=labels, groups=groups, classes=["no", "yes"])
    dataset = open_dataset(f"hdf5:{file}", val_fraction=0.2)
    assert (dataset.classes, dataset.task, dataset.channels) == (("no", "yes"), "classification", 1)
    sets = [set(s.groups) for s in dataset.splits.values()]
    assert [len(s) for s in sets] == [6, 2, 2]
    whole = open_dataset(f"hdf5:{file}", val_fraction=0)
    found = whole.splits["train"].read(np.arange(40))
    assert np.array_equal(found[0][..., 0], images)
    assert np.array_equal(found[1], labels)


def test_sixteen_bits_splits_and_masks(tmp_path, monkeypatch):
    images = _images(10, dtype=np.uint16) // 16
    masks = (images > 2048).astype(np.uint8)
    file = _write(
        tmp_path / "b.h5", train_images=images, train_masks=masks, test_images=images[:3], test_masks=masks[:3]
    )
    dataset = open_dataset(f"hdf5:{file}?bits=12")
    assert dataset.task == "segmentation"
    assert len(dataset.splits["test"]) == 3
    found, targets = dataset.splits["test"].read([2, 0])
    assert np.array_equal(found[..., 0], (images[[2, 0]].astype(int) * 255 + 2047) // 4095)
    assert np.array_equal(targets, masks[[2, 0]])
    monkeypatch.setattr("medmpi.data.hdf5_set._IN_MEMORY_BYTES", 0)
    lazy = open_dataset(f"hdf5:{file}?bits=12")
    assert type(lazy.splits["test"].source).__name__ == "Hdf5Source"
    assert np.array_equal(lazy.splits["test"].read([2, 0])[0], found)
    assert lazy.splits["test"].read([])[0].shape == (0, 8, 6, 1)


def test_shards(tmp_path):
    for i in range(3):
        _write(tmp_path / f"s{i}.h5", images=_images(5 + i, seed=i), labels=np.arange(5 + i) % 2)
    shards = [{"file": f"s{i}.h5"} for i in range(3)]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    dataset = open_dataset(f"hdf5:{tmp_path}", val_fraction=0)
    images, labels = dataset.splits["train"].read([0, 5, 17])
    assert np.array_equal(images[1, ..., 0], _images(6, seed=1)[0])
    assert np.array_equal(images[2, ..., 0], _images(7, seed=2)[6])
    assert labels.tolist() == [0, 0, 0]
    (tmp_path / "s1.h5").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing: s1.h5"):
        open_dataset(f"hdf5:{tmp_path}")


def test_what_was_never_written(tmp_path):
    with h5py.File(tmp_path / "hole.h5", "w") as file:
        part = file.create_dataset("images", (10, 8, 6), np.uint8, chunks=(1, 8, 6))
        part[:9] = 1
        file["labels"] = np.arange(10) % 2
    with pytest.raises(DataError, match="parts of it were never written"):
        open_dataset(f"hdf5:{tmp_path / 'hole.h5'}")
    with h5py.File(tmp_path / "claim.h5", "w") as file:
        file.create_dataset("images", (1 << 20, 4096, 4096), np.uint8, chunks=(1, 4096, 4096))
        file["labels"] = np.arange(10)
    with pytest.raises(DataError, match="never written"):
        open_dataset(f"hdf5:{tmp_path / 'claim.h5'}")
    whole = _write(tmp_path / "cut.h5", images=_images(20), labels=np.arange(20) % 2).read_bytes()
    for part in range(4):
        (tmp_path / "cut.h5").write_bytes(whole[: len(whole) * part // 4])
        with pytest.raises(DataError, match=r"cut.h5"):
            open_dataset(f"hdf5:{tmp_path / 'cut.h5'}")


def test_a_file_that_the_library_hangs_over(tmp_path, monkeypatch):
    """The reading process is ended and the file named; so is one that crashes it."""
    file = _write(tmp_path / "a.h5", images=_images(4), labels=np.arange(4) % 2)
    monkeypatch.setattr("medmpi.data.hdf5_check._SECONDS", 0.01)
    with pytest.raises(DataError, match=r"a.h5: it was not read through after 0 s"):
        open_dataset(f"hdf5:{file}")
    monkeypatch.setattr("medmpi.data.hdf5_check._SECONDS", 60.0)
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: run([command[0], "-c", crash], **how))
    with pytest.raises(DataError, match=r"HDF5 crashed on it \(-11\)"):
        open_dataset(f"hdf5:{file}")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"labels": np.arange(4)}, "images is missing"),
        ({"images": _images(4)}, "labels is missing"),
        ({"images": _images(4).astype(np.float32), "labels": np.arange(4)}, "not an array of whole numbers"),
        ({"images": _images(4), "labels": np.arange(3)}, "labels has shape"),
        ({"images": _images(4), "labels": np.arange(4) % 2, "groups": ["a"]}, "1 groups for 4 images"),
        ({"images": _images(4), "labels": np.array([0, 2, 2, 0])}, "class 1 has no training sample"),
        ({"images": _images(4, (8, 6, 2)), "labels": np.arange(4)}, "images has shape"),
    ],
)
def test_what_does_not_fit(tmp_path, arrays, match):
    file = _write(tmp_path / "x.h5", **arrays)
    with pytest.raises(DataError, match=match):
        open_dataset(f"hdf5:{file}")
