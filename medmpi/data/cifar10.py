"""``cifar10:DIR``: CIFAR-10 as its authors publish it, binary or Python batches.

The binary files hold records of one label byte and 3072 bytes of 32x32 red, green and blue planes. The Python batches
are pickles, which ``cifar_pickle`` reads without running them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cifar_pickle import read_batch
from .dataset import Task
from .errors import DataError
from .opened import Opened, Part
from .source import ArraySource, Images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_RECORD = 1 + _PIXELS
_LARGEST_FILE = 64 << 20  # Twice the published size; a file beyond it is something else.
_ADVICE = "expected data_batch_1..5 and test_batch, as .bin or as Python batches"


def open_cifar10(path: str, *, task: Task | None) -> Opened:
    """All ``data_batch_*`` as training and ``test_batch`` as test samples, uint8 (n, 32, 32, 3)."""
    if task == "segmentation":
        raise DataError(path, "CIFAR-10 holds a classification task", "leave out task=segmentation")
    folder = _folder(path)
    binary = (folder / "data_batch_1.bin").exists() or not (folder / "data_batch_1").exists()
    suffix = ".bin" if binary else ""
    names = {"train": [f"data_batch_{i}{suffix}" for i in range(1, 6)], "test": [f"test_batch{suffix}"]}
    parts = {}
    for split, files in names.items():
        batches = [(_binary if binary else _python)(folder / name) for name in files]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        if split == "train":
            missing = np.flatnonzero(np.bincount(labels, minlength=len(CLASSES)) == 0)
            if missing.size:
                raise DataError(path, f"no training image of class {CLASSES[missing[0]]}", "use the complete files")
        parts[split] = Part(ArraySource(images, labels), labels)
    return Opened(path, "classification", CLASSES, 3, (_SIDE, _SIDE), parts)


def _folder(path: str) -> Path:
    """The folder itself or the one that the published archives unpack to within it."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(path, "no such folder", "check the path after cifar10:")
    for folder in (root, root / "cifar-10-batches-bin", root / "cifar-10-batches-py"):
        if any((folder / name).exists() for name in ("data_batch_1.bin", "data_batch_1")):
            return folder
    return root


def _size(file: Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(file, error.strerror or error, _ADVICE) from None
    if size > _LARGEST_FILE:
        raise DataError(file, f"it holds {size} bytes, a CIFAR-10 batch about 31 million", _ADVICE)
    return size


def _binary(file: Path) -> tuple[Images, NDArray[np.int64]]:
    size = _size(file)
    if size == 0 or size % _RECORD:
        raise DataError(
            file, f"{size} bytes are no whole number of {_RECORD}-byte records", "it is cut: fetch it again"
        )
    records = np.fromfile(file, dtype=np.uint8).reshape(-1, _RECORD)
    return _images(records[:, 1:]), _labels(file, records[:, 0].astype(np.int64))


def _python(file: Path) -> tuple[Images, NDArray[np.int64]]:
    _size(file)
    pixels, labels = read_batch(file)
    if pixels.shape[1] != _PIXELS or not len(pixels):
        raise DataError(file, f"data has shape {pixels.shape}", f"expected (n, {_PIXELS})")
    return _images(pixels), _labels(file, labels)


def _images(planes: NDArray[np.uint8]) -> Images:
    return np.ascontiguousarray(planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _labels(file: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if wrong.size:
        raise DataError(file, f"label {wrong[0]} is {labels[wrong[0]]}, not 0..9", "it is damaged or not CIFAR-10")
    return labels
