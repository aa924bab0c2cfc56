"""CIFAR-10 in both published forms, whole and broken; a pickle is never run."""

import os
import pickle
import struct

import numpy as np
import pytest

from medmpi.data import DataError, class_counts, open_dataset

RECORD = 3073


def _pixels(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), np.arange(n) % 10


def _files(suffix):
    return [f"data_batch_{i}{suffix}" for i in range(1, 6)] + [f"test_batch{suffix}"]


@pytest.fixture
def binary(tmp_path):
    for seed, name in enumerate(_files(".bin")):
        pixels, labels = _pixels(seed=seed)
        np.column_stack([labels.astype(np.uint8), pixels]).tofile(tmp_path / name)
    return tmp_path


def _python2_pickle(pixels, labels):
    """What Python 2's cPickle wrote: protocol 2, byte strings, the array through _reconstruct."""
    out = b"\x80\x02}q\x01("
    out += b"U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
    out += b"U\x06labelsq\x04]q\x05(" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    out += b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
    out += b"(K\x01" + b"M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86"
    out += b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    out += b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    out += b"U\x09filenamesq\x0c](" + b"".join(b"U\x05a.png" for _ in labels) + b"e"
    return out + b"u."


@pytest.fixture(params=["python2", 2, 3, 4, 5])
def batches(request, tmp_path):
    for seed, name in enumerate(_files("")):
        pixels, labels = _pixels(seed=seed)
        if request.param == "python2":
            data = _python2_pickle(pixels, labels)
        else:
            content = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a.png"]}
            data = pickle.dumps(content, protocol=request.param)
        (tmp_path / name).write_bytes(data)
    return tmp_path, request.param


def _all(dataset, split):
    return dataset.splits[split].read(np.arange(len(dataset.splits[split])))


def test_binary(binary):
    dataset = open_dataset(f"cifar10:{binary}", val_fraction=0)
    assert dataset.image_size == (32, 32)
    assert dataset.classes[3] == "cat"
    assert {n: len(s) for n, s in dataset.splits.items()} == {"train": 200, "val": 0, "test": 40}
    images, labels = _all(dataset, "test")
    pixels, expected = _pixels(seed=5)
    assert np.array_equal(images[..., 1].reshape(40, -1), pixels[:, 1024:2048])
    assert np.array_equal(labels, expected)


def test_validation_is_cut_from_training_stratified(binary):
    dataset = open_dataset(f"cifar10:{binary}", val_fraction=0.2)
    assert class_counts(dataset, "val").tolist() == [4] * 10
    assert class_counts(dataset).tolist() == [16] * 10
    train, val = (_all(dataset, s)[0].reshape(-1, 3072) for s in ("train", "val"))
    assert len(np.unique(np.concatenate([train, val]), axis=0)) == 200


def test_python_batches_equal_the_binary_ones(batches, tmp_path):
    folder, protocol = batches
    if protocol == 5:
        # Protocol 5 rebuilds arrays through another function: refused in words, like everything not on the list.
        with pytest.raises(DataError, match=r"asks for numpy.*use the binary version"):
            open_dataset(f"cifar10:{folder}")
        return
    dataset = open_dataset(f"cifar10:{folder}", val_fraction=0)
    images, labels = _all(dataset, "train")
    for seed in range(5):
        pixels, expected = _pixels(seed=seed)
        part = slice(40 * seed, 40 * seed + 40)
        assert np.array_equal(images[part].transpose(0, 3, 1, 2).reshape(40, -1), pixels)
        assert np.array_equal(labels[part], expected)


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (_Harmful(), "asks for posix.mkdir"),
        ({"labels": [1], "data": _Harmful()}, "asks for posix.mkdir"),
        ({"labels": [1], "data": np.zeros((1, 3072), np.float32)}, "type 'f4'"),
        ({"labels": [1], "data": np.zeros((1, 3, 1024), np.uint8)}, "two-dimensional"),
        ({"labels": [1], "data": np.array([[None]])}, "type 'O8'"),
        ({"labels": [1, 2], "data": np.zeros((1, 3072), np.uint8)}, "2 labels for 1 images"),
        ({"labels": ["1"], "data": np.zeros((1, 3072), np.uint8)}, "whole numbers"),
        ({"labels": [1]}, "no array called data"),
        ([1, 2], "a list where a dict belongs"),
        ({"labels": [11], "data": np.zeros((1, 3072), np.uint8)}, "label 0 is 11"),
        ({"labels": [1], "data": np.zeros((1, 30), np.uint8)}, r"data has shape \(1, 30\)"),
        (
            {"labels": {1}, "data": np.zeros((1, 3072), np.uint8)},
            "asks for __builtin__.set|EMPTY_SET|asks for builtins",
        ),
        ({"labels": 1.5, "data": 1}, "BINFLOAT"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_pickles_are_refused_and_not_run(tmp_path, monkeypatch, content, cause, protocol):
    monkeypatch.chdir(tmp_path)
    for name in _files(""):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=f"data_batch_1: .*({cause})"):
        open_dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_damaged_python_batches_are_data_errors(tmp_path):
    pixels, labels = _pixels(4)
    good = _python2_pickle(pixels, labels)
    for name in _files(""):
        (tmp_path / name).write_bytes(good)
    rng = np.random.default_rng(1)
    head = len(good) - pixels.size - 80
    refused = 0
    for trial in range(300):
        data = bytearray(good)
        if trial % 3:
            data[int(rng.integers(0, head))] = int(rng.integers(0, 256))
        else:
            del data[int(rng.integers(0, len(data))) :]
        (tmp_path / "data_batch_1").write_bytes(data)
        try:
            open_dataset(f"cifar10:{tmp_path}", val_fraction=0)
        except DataError:
            refused += 1
    assert refused >= 150


def test_broken_binary_files(binary):
    first = binary / "data_batch_1.bin"
    good = first.read_bytes()
    first.write_bytes(good[:-5])
    with pytest.raises(DataError, match=r"data_batch_1.bin: .*3073-byte records; .*fetch it again"):
        open_dataset(f"cifar10:{binary}")
    first.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        open_dataset(f"cifar10:{binary}")
    first.write_bytes(good[:RECORD] + b"\x0a" + good[RECORD + 1 :])
    with pytest.raises(DataError, match="label 1 is 10"):
        open_dataset(f"cifar10:{binary}")
    with open(first, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="1073741824 bytes"):
        open_dataset(f"cifar10:{binary}")
    first.write_bytes(good)
    (binary / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch.bin: No such file"):
        open_dataset(f"cifar10:{binary}")


def test_missing_class_and_missing_folder(binary):
    for name in _files(".bin")[:5]:
        records = np.fromfile(binary / name, np.uint8).reshape(-1, RECORD)
        records[records[:, 0] == 7].tofile(binary / name)
    with pytest.raises(DataError, match="no training image of class airplane"):
        open_dataset(f"cifar10:{binary}")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(f"cifar10:{binary}/nowhere")
    with pytest.raises(DataError, match="classification"):
        open_dataset(f"cifar10:{binary}", task="segmentation")
    with pytest.raises(ValueError, match="cifar10: option a"):
        open_dataset(f"cifar10:{binary}?a=1")


def test_published_folder_names(binary, tmp_path):
    inner = tmp_path / "outer" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name in _files(".bin"):
        (binary / name).rename(inner / name)
    assert len(open_dataset(f"cifar10:{tmp_path / 'outer'}").splits["test"]) == 40


def test_real_cifar10(real_data):
    dataset = open_dataset(f"cifar10:{real_data('cifar10')}", val_fraction=0)
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (5085, 1017)
    # S2's normalisation (of all 50,000 images): these are a tenth of them.
    assert np.abs(dataset.mean - [0.4914, 0.4822, 0.4465]).max() < 0.01
    assert np.abs(dataset.std - [0.2470, 0.2435, 0.2616]).max() < 0.01
