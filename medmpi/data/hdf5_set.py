"""``hdf5:FILE`` or ``hdf5:DIR``: arrays in one HDF5 file or in the shards that ``medmpi prepare`` writes.

Data sets ``images`` (n, h, w) or (n, h, w, 1 or 3) of uint8 or uint16 with ``labels`` (n,), or with ``masks``
(n, h, w); optionally ``groups`` (n,), strings that say whose each sample is, and the attribute ``classes``. With
``train_``, ``val_`` and ``test_`` before these names a file holds splits; in a folder each file holds some of them.
Masks of 0 and 255 alone are taken for 0 and 1.
Option ``bits=8..16``: the range of uint16 (16 unless given).

HDF5 gives zeros for parts that were never written, without a word: they are looked for here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Task
from .entries import by_threads
from .errors import DataError, MissingPackage
from .hdf5_check import check_hdf5
from .opened import Opened, Part, check_classes
from .partition import Ids
from .source import ArraySource, Images, Source, Targets, memory_limit

MANIFEST = "manifest.json"
_EXPECTED = "expected images with labels or masks"
_IN_MEMORY_BYTES = min(1 << 30, memory_limit())
_ADVICE = "write it again"


class Hdf5Source:
    """Samples that stay in their files: of each the images and targets, one file after the other."""

    def __init__(self, files: Sequence[Path], prefix: str, targets: str, top: int, *, binary: bool = False) -> None:
        self.prefix, self.targets, self.top, self.binary = prefix, targets, top, binary
        self._lock = threading.Lock()  # the library's own would serialise them anyway
        self.files = list(files)
        self._opened: dict[Path, Any] = {}
        counts = [len(self._file(f)[prefix + "images"]) for f in self.files]
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _file(self, path: Path) -> Any:
        if path not in self._opened:
            self._opened[path] = open_file(path)
        return self._opened[path]

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        with self._lock:
            pairs = [self._read(int(p)) for p in positions]
        if not pairs:
            first = self._file(self.files[0])[self.prefix + "images"]
            channels = first.shape[3] if first.ndim == 4 else 1
            shape = (0,) if self.targets == "labels" else (0, *first.shape[1:3])
            return np.empty((0, *first.shape[1:3], channels), np.uint8), np.empty(shape, np.int64)
        images, targets = (np.stack(part) for part in zip(*pairs, strict=True))
        return _to_bytes(images, self.top), targets

    def _read(self, position: int) -> tuple[NDArray[Any], NDArray[Any]]:
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        path, at = self.files[number], position - int(self.starts[number])
        opened = self._file(path)
        try:
            image = np.asarray(opened[self.prefix + "images"][at])
            target = np.asarray(opened[self.prefix + self.targets][at])
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(path, f"sample {at} cannot be read ({error})", _ADVICE) from None
        image = image.reshape(*image.shape[:2], -1)
        if self.targets == "labels":
            return image, target.reshape(()).astype(np.int64)
        return image, (target > 0 if self.binary else target).astype(np.uint8)


def open_hdf5(path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    """Check the arrays' claims, labels and groups; the images stay in the file where they are too many."""
    del image_size  # arrays are resized by whoever asked
    for key, value in options.items():
        if key != "bits" or value not in map(str, range(8, 17)):
            raise ValueError(f"hdf5: option {key}={value}, expected bits=8..16")
    files = _files(Path(path))
    _h5py()
    for result in by_threads(check_hdf5, files, "HDF5"):
        if isinstance(result, DataError):
            raise result
    try:
        return _open(path, files, task, int(options.get("bits", "16")))
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(path, f"it cannot be read as HDF5 ({error})", _ADVICE) from error


def _open(path: str, files: list[Path], task: Task | None, bits: int) -> Opened:
    files_of = _splits(files)
    prefixes = {s: f"{s}_" for s in files_of} if files_of else {"train": ""}
    if "train" not in prefixes:
        raise DataError(path, f"there is no train split (found: {', '.join(prefixes)})", _EXPECTED)
    first = open_file(files_of.get("train", files)[0])
    targets = "masks" if prefixes["train"] + "masks" in first else "labels"
    found: Task = "segmentation" if targets == "masks" else "classification"
    if task is not None and task != found:
        raise DataError(path, f"it holds a {found} task", f"leave out task={task}")
    shape: tuple[int, ...] | None = None
    flat: dict[str, NDArray[np.int64]] = {}
    owners: dict[str, list[str]] = {}
    for split, prefix in prefixes.items():
        values, groups = [], []
        here = files_of.get(split, files)
        for file in here:
            opened = open_file(file)
            images = checked_dataset(file, opened, prefix + "images")
            wanted = checked_dataset(file, opened, prefix + targets)
            _check_arrays(file, prefix, images, wanted, targets)
            shape = shape or images.shape[1:]
            if images.shape[1:] != shape:
                raise DataError(file, f"{prefix}images are {images.shape[1:]}, others {shape}", "make them equal")
            read = np.asarray(wanted[...])
            values.append(np.unique(read) if found == "segmentation" else read.reshape(-1))
            if prefix + "groups" in opened:
                groups += [g.decode() if isinstance(g, bytes) else str(g) for g in opened[prefix + "groups"][...]]
        flat[split], owners[split] = np.concatenate(values).astype(np.int64), groups
    assert shape is not None
    binary = found == "segmentation" and set(np.concatenate(list(flat.values())).tolist()) == {0, 255}
    if binary:
        flat = {split: np.minimum(values, 1) for split, values in flat.items()}
    count = check_classes(path, flat, what="label" if found == "classification" else "mask value")
    classes = _classes(path, first, count)
    parts = {}
    for split, prefix in prefixes.items():
        source = Hdf5Source(files_of.get(split, files), prefix, targets, 2**bits - 1, binary=binary)
        parts[split] = _part(source, flat[split], owners[split], found)
    channels = shape[2] if len(shape) == 3 else 1
    return Opened(path, found, classes, channels, (shape[0], shape[1]), parts)


def _splits(files: list[Path]) -> dict[str, list[Path]]:
    """The files that hold something of each split, where there are splits."""
    found: dict[str, list[Path]] = {}
    lost = None
    for file in files:
        opened = open_file(file)
        here = [s for s in SPLITS if f"{s}_images" in opened]
        lost = lost if here else file
        for split in here:
            found.setdefault(split, []).append(file)
    if found and lost is not None:
        raise DataError(lost, "it has no train_images, val_images or test_images, others of the folder have", _EXPECTED)
    return {s: found[s] for s in SPLITS if s in found}


def _part(stored: Hdf5Source, flat: NDArray[np.int64], groups: list[str], task: Task) -> Part:
    source: Source = stored
    if groups and len(groups) != len(source):
        prefix = stored.prefix
        raise DataError(stored.files[0], f"{len(groups)} {prefix}groups for {len(source)} images", "expected as many")
    sample = source.read(np.arange(min(1, len(source))))
    if len(source) * (sample[0].nbytes + sample[1].nbytes) <= _IN_MEMORY_BYTES and len(source):
        pieces = [source.read(np.arange(i, min(i + 256, len(source)))) for i in range(0, len(source), 256)]
        source = ArraySource(*(np.concatenate(part) for part in zip(*pieces, strict=True)))
    return Part(source, flat if task == "classification" else None, tuple(groups) or None)


def _files(path: Path) -> list[Path]:
    """A file itself, or the shards of a folder, all of which must be there."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(path, "no such file", "check the path after hdf5:")
        return [path]
    shards = sorted(path.glob("*.h5"))
    manifest = path / MANIFEST
    if manifest.is_file():
        try:
            names = [str(entry["file"]) for entry in json.loads(manifest.read_text("utf-8"))["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(manifest, f"it cannot be read ({error!r})", "run medmpi prepare again") from None
        missing = [name for name in names if not (path / Path(name).name).is_file()]
        if missing:
            raise DataError(path, f"{len(missing)} of {len(names)} shards are missing: {missing[0]}", _ADVICE)
        shards = [path / Path(name).name for name in names]
    if not shards:
        raise DataError(path, "it has no *.h5 file", _EXPECTED)
    return shards


@cache
def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingPackage("HDF5", "reading it needs h5py", "pip install 'medmpi[io]'") from None
    return h5py


def open_file(path: Path) -> Any:
    """The file for reading; DataError where it is none."""
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise DataError(path, f"it cannot be opened as HDF5 ({error})", "it may be truncated: " + _ADVICE) from None


def checked_dataset(path: Path, opened: Any, name: str, kinds: str = "biu") -> Any:
    """A data set of numbers of such kinds (numpy's letters), all of whose bytes are there."""
    if name not in opened:
        raise DataError(path, f"{name} is missing (found: {', '.join(sorted(opened)) or 'nothing'})", _EXPECTED)
    found = opened[name]
    if not isinstance(found, _h5py().Dataset) or found.dtype.kind not in kinds:
        wanted = "numbers" if "f" in kinds else "whole numbers"
        raise DataError(path, f"{name} is not an array of {wanted}", _EXPECTED)
    if found.is_virtual:
        raise DataError(path, f"{name} is virtual: missing parts of it would be read as zeros", "copy it")
    if found.chunks is None:
        whole = found.id.get_storage_size() >= found.nbytes
    else:
        expected = np.prod([-(-n // c) for n, c in zip(found.shape, found.chunks, strict=True)], dtype=np.int64)
        whole = found.id.get_num_chunks() >= expected
    if not whole and found.nbytes:
        raise DataError(path, f"{name} claims {found.shape} but parts of it were never written", _ADVICE)
    return found


def _check_arrays(path: Path, prefix: str, images: Any, targets: Any, kind: str) -> None:
    name = prefix + "images"
    if images.dtype not in (np.uint8, np.uint16):
        raise DataError(path, f"{name} is {images.dtype}", "expected uint8 or uint16")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape[1:]:
        raise DataError(path, f"{name} has shape {images.shape}", "expected (n, h, w) or (n, h, w, 1 or 3)")
    expected = images.shape[:3] if kind == "masks" else images.shape[:1]
    if targets.shape != expected and targets.shape != (*expected, 1):
        raise DataError(path, f"{prefix}{kind} has shape {targets.shape}", f"expected {expected}")


def _to_bytes(images: NDArray[Any], top: int) -> Images:
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    scaled = (images.astype(np.uint32) * 255 + top // 2) // top
    return np.minimum(scaled, 255).astype(np.uint8)


def _classes(path: str, opened: Any, count: int) -> tuple[str, ...]:
    names = opened.attrs.get("classes")
    if names is None:
        return tuple(str(k) for k in range(count))
    found = tuple(str(n) for n in names)
    if len(found) != count:
        raise DataError(path, f"its classes are {', '.join(found)}", f"expected {count} names")
    return found
