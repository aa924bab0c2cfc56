"""npz archives: the MedMNIST layout, plain arrays, and every way in which a file can be wrong."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from medmpi.data import DataError, class_counts, open_dataset


def _arrays(n=30, shape=(6, 5), classes=3, prefix="train_", seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}images": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        f"{prefix}labels": (np.arange(n) % classes).astype(np.uint8).reshape(n, 1),
    }


@pytest.fixture
def write(tmp_path):
    def save(**arrays):
        path = tmp_path / "set.npz"
        np.savez_compressed(path, **arrays)
        return f"npz:{path}"

    return save


def _read(dataset, split):
    return dataset.splits[split].read(np.arange(len(dataset.splits[split])))


def test_medmnist_layout(write):
    arrays = _arrays() | _arrays(9, prefix="val_", seed=1) | _arrays(6, prefix="test_", seed=2)
    dataset = open_dataset(write(**arrays))
    assert (dataset.task, dataset.channels, dataset.image_size) == ("classification", 1, (6, 5))
    assert dataset.classes == ("0", "1", "2")
    for split, n in (("train", 30), ("val", 9), ("test", 6)):
        images, labels = _read(dataset, split)
        assert len(images) == n
        assert np.array_equal(images[..., 0], arrays[f"{split}_images"])
        assert np.array_equal(labels, arrays[f"{split}_labels"][:, 0])
    pixels = arrays["train_images"] / 255.0
    assert np.allclose(dataset.mean, pixels.mean(), rtol=1e-6)
    assert np.allclose(dataset.std, pixels.std(), rtol=1e-6)
    assert dataset.splits["test"].mean is dataset.mean


def test_plain_arrays_are_split_stratified_by_seed(write):
    arrays = _arrays(100, (4, 4, 3), classes=2, prefix="")
    spec = write(**arrays)
    dataset = open_dataset(spec, seed=1, val_fraction=0.2)
    assert [class_counts(dataset, s).tolist() for s in ("train", "val", "test")] == [[30, 30], [10, 10], [10, 10]]
    flat = np.concatenate([_read(dataset, s)[0].reshape(-1, 48) for s in ("train", "val", "test")])
    assert len(np.unique(flat, axis=0)) == 100
    again, other = open_dataset(spec, seed=1, val_fraction=0.2), open_dataset(spec, seed=2, val_fraction=0.2)
    assert np.array_equal(dataset.splits["val"].positions, again.splits["val"].positions)
    assert not np.array_equal(dataset.splits["val"].positions, other.splits["val"].positions)


def test_missing_splits(write):
    only_val = open_dataset(write(**_arrays(), **_arrays(6, prefix="val_")))
    assert [len(only_val.splits[s]) for s in ("train", "val", "test")] == [30, 6, 0]
    only_test = open_dataset(write(**_arrays(), **_arrays(6, prefix="test_")))
    assert [len(only_test.splits[s]) for s in ("train", "val", "test")] == [27, 3, 6]
    assert len(_read(only_val, "test")[0]) == 0


def test_constant_channel_and_class_names(write):
    arrays = _arrays(12, (4, 4, 3))
    arrays["train_images"][..., 1] = 51
    dataset = open_dataset(write(**arrays, class_names=np.array(["a", "b", "c"])))
    assert dataset.classes == ("a", "b", "c")
    assert dataset.std[1] == 1
    assert dataset.mean[1] == np.float32(0.2)
    assert np.isfinite(dataset.std).all()


def test_segmentation_and_image_size(write):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (20, 8, 8), np.uint8), rng.integers(0, 3, (20, 8, 8), np.uint8)
    spec = write(images=images, labels=masks)
    dataset = open_dataset(spec, val_fraction=0.25)
    assert dataset.task == "segmentation"
    assert len(dataset.splits["val"]) == 5
    assert np.array_equal(_read(dataset, "val")[1], masks[dataset.splits["val"].positions])
    with pytest.raises(ValueError, match="has masks"):
        _ = dataset.splits["train"].labels
    larger = open_dataset(spec, image_size=16, val_fraction=0)
    assert larger.image_size == (16, 16)
    assert np.array_equal(_read(larger, "train")[1], masks.repeat(2, axis=1).repeat(2, axis=2))


def test_resizing_as_read_equals_resizing_at_once(write, monkeypatch):
    spec = write(**_arrays(12, (8, 6, 3)))
    at_once = open_dataset(spec, image_size=(5, 9))
    monkeypatch.setattr("medmpi.data.opened._RESIZED_BYTES", 0)
    as_read = open_dataset(spec, image_size=(5, 9))
    assert type(at_once.splits["train"].source) is not type(as_read.splits["train"].source)
    assert np.array_equal(_read(at_once, "train")[0], _read(as_read, "train")[0])


def test_relative_paths_and_fortran_order(write, tmp_path, monkeypatch):
    arrays = _arrays()
    arrays["train_images"] = np.asfortranarray(arrays["train_images"])
    write(**arrays)
    monkeypatch.chdir(tmp_path)
    images = _read(open_dataset("npz:set.npz", val_fraction=0), "train")[0]
    assert np.array_equal(images[..., 0], arrays["train_images"])
    (tmp_path / "set.npz").rename(tmp_path / "what?a=b.npz")
    assert open_dataset("npz:what?a=b.npz").channels == 1


def test_read_checks_ids(write):
    train = open_dataset(write(**_arrays())).splits["train"]
    for bad in ([-1], [len(train)]):
        with pytest.raises(IndexError, match=f"id {bad[0]} is not in the train split"):
            train.read(bad)
    with pytest.raises(ValueError, match="rank 2"):
        train.read([[0]])


N = np.zeros((4, 3, 3), np.uint8)
L = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({}, "no arrays"),
        ({"other": N}, "it holds other"),
        ({"images": N}, "array labels is missing"),
        ({"train_images": N, "train_labels": L, "val_images": N}, "array val_labels is missing"),
        ({"val_images": N, "val_labels": L}, "no train split"),
        ({"images": N.astype(np.float32), "labels": L}, "images is float32; expected uint8"),
        ({"images": N.astype(np.uint16), "labels": L}, "images is uint16"),
        ({"images": N[0], "labels": L}, r"images has shape \(3, 3\)"),
        ({"images": np.zeros((4, 3, 3, 2), np.uint8), "labels": L}, "expected .n, h, w"),
        ({"images": np.zeros((4, 28, 28, 28), np.uint8), "labels": L}, "expected .n, h, w"),
        ({"images": N[:0], "labels": L[:0]}, "images is empty"),
        ({"images": N[:, :0], "labels": L}, "images is empty"),
        ({"images": N, "labels": L.astype(float)}, "labels is float64; expected whole numbers"),
        ({"images": N, "labels": L[:3]}, "3 entries for 4 images"),
        ({"images": N, "labels": np.zeros((4, 14), np.uint8)}, "14 columns"),
        ({"images": N, "labels": np.array(3)}, r"labels has shape \(\)"),
        ({"images": N, "labels": L - 1}, "label is -1"),
        ({"images": N, "labels": L * 2}, "class 1 has no training sample"),
        ({"images": N, "labels": L * 10**9}, "class 1 has no training sample"),
        ({"images": N, "labels": L.astype(np.uint64) * np.uint64(2**63 + 5)}, "holds 9223372036854775813"),
        ({"images": N, "labels": L * 0}, "two classes"),
        ({"images": N, "labels": np.zeros((4, 3, 2), np.uint8)}, r"masks are \(3, 2\)"),
        ({"images": N, "labels": np.full((4, 3, 3), 300)}, "value 300"),
        ({"images": N, "labels": np.full((4, 3, 3), -2)}, "mask value is -2"),
        ({"train_images": N, "train_labels": L, "test_images": N, "test_labels": L + 1}, "test label 1 is 2"),
        ({"train_images": N, "train_labels": L, "val_images": N[:, 1:], "val_labels": L}, "val images are"),
        ({"train_images": N, "train_labels": L, "val_images": N, "val_labels": N}, "same rank"),
        ({"images": N, "labels": L, "class_names": np.array(["a"])}, "expected 2 strings"),
    ],
)
def test_wrong_contents(write, arrays, cause):
    spec = write(**arrays)
    with pytest.raises(DataError, match=cause) as caught:
        open_dataset(spec)
    assert str(caught.value).startswith(f"{spec[4:]}: ")
    assert "\n" not in str(caught.value)


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickled_objects_are_refused_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write(images=N, labels=np.array([_Harmful()] * 4, dtype=object))
    with pytest.raises(DataError, match="labels holds pickled objects"):
        open_dataset(spec)
    assert not (tmp_path / "ran").exists()


def _member(header, payload):
    text = header.encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


@pytest.mark.parametrize(
    ("header", "payload", "cause"),
    [
        (
            "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 90000)}",
            b"x" * 10,
            "9000000000 bytes, but holds 10",
        ),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2)}", b"", "bytes, but holds|header"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2)}", b"12345", "4 bytes, but holds 5"),
        ("{'descr': '|u1'}", b"", "header of images is damaged"),
        ("__import__('os').mkdir('ran')", b"", "header of images is damaged"),
    ],
)
def test_headers_are_not_believed(tmp_path, monkeypatch, header, payload, cause):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", _member(header, payload))
    with pytest.raises(DataError, match=cause):
        open_dataset("npz:set.npz")
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=np.zeros((64, 1024, 1024), np.uint8), labels=np.arange(64) % 2)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr("medmpi.data.npz.memory_limit", lambda: 32 << 20)
    monkeypatch.setattr("medmpi.data.npz.read_member", lambda *a: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="half of the memory"):
        open_dataset(f"npz:{path}")


def test_a_false_size_in_the_directory_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=N, labels=L)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    with pytest.raises(DataError, match="claims 1073741824 bytes"):
        open_dataset(f"npz:{path}")


@pytest.mark.parametrize("keep", [0, 10, 100, 0.5, 0.99])
def test_truncated_archives(tmp_path, keep):
    path = tmp_path / "set.npz"
    np.savez(path, **_arrays(50))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"set.npz: not a readable npz archive .*fetch it again"):
        open_dataset(f"npz:{path}")


def test_flipped_bits_never_pass_nor_crash(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **_arrays(20))
    good = path.read_bytes()
    whole = open_dataset(f"npz:{path}", val_fraction=0)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            dataset = open_dataset(f"npz:{path}", val_fraction=0)
        except DataError:
            refused += 1
        else:
            assert np.array_equal(_read(dataset, "train")[0], _read(whole, "train")[0])
    assert refused > 100


def test_no_file_no_archive_and_wrong_task(tmp_path, write):
    with pytest.raises(DataError, match=r"none.npz: no such file; check the path"):
        open_dataset(f"npz:{tmp_path}/none.npz")
    with pytest.raises(DataError, match="not a readable npz archive"):
        open_dataset(f"npz:{tmp_path}")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="not a readable npz archive"):
        open_dataset(f"npz:{tmp_path}/text.npz")
    with pytest.raises(DataError, match="holds a classification task"):
        open_dataset(write(**_arrays()), task="segmentation")
    with pytest.raises(ValueError, match="npz: option a"):
        open_dataset(write(**_arrays()) + "?a=1")


def test_the_error_travels_between_ranks():
    error = pickle.loads(pickle.dumps(DataError("a.npz", "two\nlines", "do this")))
    assert (str(error), error.path) == ("a.npz: two lines; do this", "a.npz")
    assert str(DataError(io.StringIO("x").getvalue(), "why")) == "x: why"


def test_real_pneumonia(real_data):
    dataset = open_dataset(f"npz:{real_data('pneumoniamnist') / 'pneumoniamnist_28.npz'}")
    assert [len(dataset.splits[s]) for s in ("train", "val", "test")] == [4708, 524, 624]
    assert class_counts(dataset).tolist() == [1214, 3494]
    assert dataset.image_size == (28, 28)
    assert abs(dataset.mean[0] - 0.5719) < 1e-3
    assert abs(dataset.std[0] - 0.1684) < 1e-3


def test_real_histology(real_data):
    dataset = open_dataset(f"npz:{real_data('histology_patches') / 'dsb2018_he_64px_patches.npz'}")
    assert sum(len(s) for s in dataset.splits.values()) == 2140
    assert (dataset.channels, dataset.image_size) == (3, (64, 64))
