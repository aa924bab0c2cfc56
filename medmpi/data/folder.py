"""``folder:DIR``: pictures in one folder per class, or ``images`` beside ``masks``.

Either directly in DIR or within its ``train``, ``val`` and ``test``. Options, after a question mark: ``bits=12`` (range
of grey pictures deeper than 8 bits; 16 unless given), ``bad=skip`` (leave out files that cannot be decoded instead of
ending), ``masks=binary`` (every number above 0 is foreground, as for masks of numbered instances) or
``masks=classes`` (numbers are classes even beyond 64).

Every file is decoded once when the folder is opened, so that a bad one ends the job before it has begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Task
from .errors import DataError
from .opened import Opened, Part, check_classes
from .partition import Ids
from .picture import SUFFIXES, read_header, read_mask, read_picture, resize_mask
from .source import ArraySource, Images, Source, Targets, memory_limit

# Pictures stay in memory up to this size in all; beyond, they are decoded again whenever they are read.
_IN_MEMORY_BYTES = min(1 << 30, memory_limit())
_ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MOST_CLASSES = 64  # Numbers beyond it are taken for those of instances unless the masks are said to hold classes.
_LAYOUT = "expected a folder per class, or images/ beside masks/, directly or within train/, val/ and test/"
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass
class Entry:
    """A picture with its class, or with its mask."""

    image: Path
    label: int = 0
    mask: Path | None = None


@dataclass
class FolderReader:
    """How the files of one folder become arrays."""

    path: str
    image_size: tuple[int, int] | None
    bits: int = 16
    skip_bad: bool = False
    masks: str | None = None
    channels: int = 1
    mask_table: NDArray[np.uint8] | None = None
    skipped: list[str] = field(default_factory=list)

    def image(self, entry: Entry) -> Images:
        """uint8 (h, w, c)."""
        return read_picture(entry.image, channels=self.channels, bits=self.bits, image_size=self.image_size)

    def mask_values(self, entry: Entry) -> NDArray[np.int64]:
        """The numbers that occur in an entry's mask, whose size must be its picture's."""
        assert entry.mask is not None
        mask, header = read_mask(entry.mask), read_header(entry.image)
        if mask.shape != header.image_size:
            sizes = f"it is {_times(mask.shape)}, {entry.image.name} is {_times(header.image_size)}"
            raise DataError(entry.mask, sizes, "make them equal")
        return np.unique(mask)

    def mask(self, entry: Entry) -> Images:
        """Classes, uint8 (h, w)."""
        assert entry.mask is not None
        mask = read_mask(entry.mask)
        if self.masks == "binary":
            classes = (mask > 0).astype(np.uint8)
        else:
            assert self.mask_table is not None
            classes = self.mask_table[mask]
        return resize_mask(classes, self.image_size)

    def survivors(self, entries: Sequence[_T], results: Sequence[object]) -> list[_T]:
        """The entries that gave a result and not an error; the first error is raised unless bad files are skipped."""
        for result in results:
            if isinstance(result, DataError):
                if not self.skip_bad:
                    raise result
                self.skipped.append(str(result))
        return [e for e, r in zip(entries, results, strict=True) if not isinstance(r, DataError)]


class FolderSource:
    """Pictures too many for the memory: decoded when they are read."""

    def __init__(
        self, reader: FolderReader, entries: Sequence[Entry], size: tuple[int, int], *, segmentation: bool
    ) -> None:
        self.reader, self.entries, self.size, self.segmentation = reader, entries, size, segmentation

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        """In the calling thread: the loader already reads several batches at once."""
        entries = [self.entries[i] for i in positions]
        images = [self.reader.image(entry) for entry in entries]
        return _stack(self.reader, entries, self.size, images, segmentation=self.segmentation)


def open_folder(path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    """Find, check and decode the pictures of a folder. Files of other kinds beside them are not looked at."""
    if not Path(path).is_dir():
        raise DataError(path, "no such folder", "check the path after folder:")
    try:
        return _open(path, task, options, image_size)
    except OSError as error:
        raise DataError(error.filename or path, error.strerror or error, "check that it can be read") from error


def _open(path: str, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    root = Path(path)
    reader = _reader(path, options, image_size)
    split_folders = {_ALIASES[d.name]: d for d in _subfolders(root) if d.name in _ALIASES} or {"train": root}
    if "train" not in split_folders:
        raise DataError(path, f"it has {', '.join(split_folders)} but no train", _LAYOUT)
    found: Task = "segmentation" if _masks(split_folders["train"]) else "classification"
    if task is not None and task != found:
        raise DataError(path, f"it is laid out for {found}", _LAYOUT)
    classes: tuple[str, ...] = ()
    if found == "classification":
        classes = tuple(d.name for d in _subfolders(split_folders["train"]))
        if len(classes) < 2:
            raise DataError(
                split_folders["train"], f"it has {len(classes)} class folders, 2 or more are needed", _LAYOUT
            )
        listed = {s: _by_class(d, classes) for s, d in split_folders.items()}
    else:
        listed = {s: _with_masks(d) for s, d in split_folders.items()}
    entries, size = _check_headers(reader, listed)
    if found == "segmentation":
        entries, classes = _check_masks(reader, entries)
    parts = {}
    for split in SPLITS:
        if split in entries:
            parts[split] = _part(reader, entries[split], size, segmentation=found == "segmentation")
    if found == "classification":
        _check_counts(path, parts, classes)
    return Opened(path, found, classes, reader.channels, size, parts, tuple(reader.skipped))


def _reader(path: str, options: dict[str, str], image_size: tuple[int, int] | None) -> FolderReader:
    allowed = {"bits": [str(b) for b in range(8, 17)], "bad": ["error", "skip"], "masks": ["classes", "binary"]}
    for key, value in options.items():
        if value not in allowed.get(key, []):
            raise ValueError(
                f"folder: option {key}={value}, expected bits=8..16, bad=error|skip or masks=classes|binary"
            )
    return FolderReader(
        path,
        image_size,
        bits=int(options.get("bits", "16")),
        skip_bad=options.get("bad") == "skip",
        masks=options.get("masks"),
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted((d for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")), key=lambda d: d.name)


def _masks(folder: Path) -> Path | None:
    """The folder of masks beside ``images``, if these two are there."""
    if (folder / "images").is_dir():
        for name in ("masks", "labels"):
            if (folder / name).is_dir():
                return folder / name
    return None


def _pictures(folder: Path) -> list[Path]:
    """All pictures below a folder in the order of their paths, the same on every machine."""
    files = (Path(base) / name for base, _, names in os.walk(folder, onerror=_raise) for name in names)
    wanted = (f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    return sorted(wanted, key=lambda f: f.relative_to(folder).as_posix())


def _raise(error: OSError) -> None:
    """os.walk leaves out what it may not read, unless told to fail."""
    raise error


def _by_class(folder: Path, classes: tuple[str, ...]) -> list[Entry]:
    entries = []
    for sub in _subfolders(folder):
        if sub.name not in classes:
            raise DataError(sub, "training has no class of this name", f"expected {', '.join(classes)}")
        files = _pictures(sub)
        if not files and _ALIASES.get(folder.name, "train") == "train":
            raise DataError(sub, f"the class has no picture ({', '.join(SUFFIXES)})", "add some or remove the folder")
        entries += [Entry(file, classes.index(sub.name)) for file in files]
    return entries


def _with_masks(folder: Path) -> list[Entry]:
    """Pairs by path and name without suffix (a mask may add ``_mask``), never by position in a listing."""
    masks_folder = _masks(folder)
    if masks_folder is None:
        raise DataError(folder, "it has no images/ beside masks/", _LAYOUT)
    images, masks = (_by_name(f) for f in (folder / "images", masks_folder))
    entries = []
    for name, image in images.items():
        mask = masks.pop(name, None) or masks.pop(f"{name}_mask", None)
        if mask is None:
            raise DataError(image, f"it has no mask in {masks_folder}", "expected a file of the same name")
        entries.append(Entry(image, mask=mask))
    if masks:
        raise DataError(next(iter(masks.values())), "a mask without a picture", f"expected one in {folder / 'images'}")
    if not entries:
        raise DataError(folder / "images", f"it has no picture ({', '.join(SUFFIXES)})", "add some")
    return entries


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in _pictures(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(file, f"{files[name].name} has the same name", "rename one: pairs are found by name")
        files[name] = file
    return files


def _check_headers(
    reader: FolderReader, listed: dict[str, list[Entry]]
) -> tuple[dict[str, list[Entry]], tuple[int, int]]:
    """The readable entries and the size of all; decides the number of channels."""
    kept: dict[str, list[Entry]] = {}
    first: tuple[Path, tuple[int, int]] | None = None
    grey = True
    for split, entries in listed.items():
        headers = _map(lambda entry: read_header(entry.image), entries)
        kept[split] = reader.survivors(entries, headers)
        for entry, header in zip(entries, headers, strict=True):
            if isinstance(header, DataError):
                continue
            grey = grey and header.grey
            first = first or (entry.image, header.image_size)
            if reader.image_size is None and header.image_size != first[1]:
                sizes = f"it is {_times(header.image_size)}, {first[0]} is {_times(first[1])}"
                raise DataError(entry.image, sizes, "give an image size to resize all")
    if first is None:
        raise DataError(reader.path, "it has no readable picture", _LAYOUT)
    reader.channels = 1 if grey else 3
    return kept, reader.image_size or first[1]


def _check_masks(
    reader: FolderReader, entries: dict[str, list[Entry]]
) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """The readable pairs and the classes; decides how mask numbers become classes."""
    kept, values = {}, {}
    for split, listed in entries.items():
        found = _map(reader.mask_values, listed)
        kept[split] = reader.survivors(listed, found)
        arrays = [v for v in found if not isinstance(v, DataError)]
        values[split] = np.unique(np.concatenate([np.empty(0, np.int64), *arrays]))
    if reader.masks == "binary":
        return kept, ("background", "foreground")
    everything = np.unique(np.concatenate(list(values.values())))
    if everything.tolist() in ([0, 255], [0, 1]):
        reader.mask_table = np.zeros(256, np.uint8)
        reader.mask_table[1:] = 1
        return kept, ("background", "foreground")
    if everything.size and everything[-1] > (255 if reader.masks == "classes" else _MOST_CLASSES):
        advice = "for instances give ?masks=binary, for up to 256 classes ?masks=classes"
        raise DataError(reader.path, f"masks hold numbers up to {everything[-1]}", advice)
    count = check_classes(reader.path, values, what="mask number")
    reader.mask_table = np.arange(256, dtype=np.uint8)
    return kept, tuple(str(k) for k in range(count))


def _part(reader: FolderReader, entries: list[Entry], size: tuple[int, int], *, segmentation: bool) -> Part:
    """Decode every file once: into memory where they fit, else to see that they are whole."""
    in_memory = len(entries) * size[0] * size[1] * (reader.channels + 1) <= _IN_MEMORY_BYTES
    empty = np.empty(0, dtype=np.uint8)

    def decode(entry: Entry) -> Images:
        image = reader.image(entry)
        return image if in_memory else empty

    images = _map(decode, entries)
    entries = reader.survivors(entries, images)
    kept = [image for image in images if not isinstance(image, DataError)]
    labels = None if segmentation else np.array([entry.label for entry in entries], dtype=np.int64)
    source: Source
    if in_memory:
        source = ArraySource(*_stack(reader, entries, size, kept, segmentation=segmentation))
    else:
        source = FolderSource(reader, entries, size, segmentation=segmentation)
    return Part(source, labels)


def _stack(
    reader: FolderReader,
    entries: Sequence[Entry],
    size: tuple[int, int],
    images: Sequence[Images],
    *,
    segmentation: bool,
) -> tuple[Images, Targets]:
    stacked = np.empty((len(entries), *size, reader.channels), dtype=np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[...] = image
    if not segmentation:
        return stacked, np.array([entry.label for entry in entries], dtype=np.int64)
    masks = np.empty((len(entries), *size), dtype=np.uint8)
    for target, entry in zip(masks, entries, strict=True):
        target[...] = reader.mask(entry)
    return stacked, masks


def _check_counts(path: str, parts: dict[str, Part], classes: tuple[str, ...]) -> None:
    labels = parts["train"].labels
    assert labels is not None
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0):
        raise DataError(path, f"class {classes[k]} has no readable training picture", "add some or remove the folder")


def _map(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R | DataError]:
    """The function of each item, or its DataError, by a few threads (decoders release the GIL)."""

    def guarded(item: _T) -> _R | DataError:
        try:
            return function(item)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(guarded, items))


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
