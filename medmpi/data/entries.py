"""The files of a data set: headers and masks checked, each frame a sample, read now or when needed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, MissingPackage
from .medical import Header
from .opened import Part, check_classes
from .partition import Ids
from .picture import resize_mask
from .readers import read_header, read_image, read_mask
from .reading import Reading, laid
from .source import ArraySource, Images, Source, Targets, memory_limit
from .waiting import Count

# Images stay in memory up to this size in all; beyond, they are decoded again whenever they are read.
_IN_MEMORY_BYTES = min(1 << 30, memory_limit())
_MOST_CLASSES = 64  # Numbers beyond it are taken for those of instances unless the masks are said to hold classes.
_KEPT_VOLUMES = 4  # decoded files of several frames that a source keeps
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass
class Entry:
    """An image file with its class, or with its mask, and whose it is."""

    image: Path
    label: int = 0
    mask: Path | None = None
    group: str | None = None
    frames: int = 1


@dataclass
class FileReader:
    """How the files of one data set become arrays."""

    path: str
    image_size: tuple[int, int] | None
    reading: Reading = field(default_factory=Reading)
    skip_bad: bool = False
    masks: str | None = None
    pad: bool = False
    channels: int = 1
    mask_table: NDArray[np.uint8] | None = None
    skipped: list[str] = field(default_factory=list)

    def images(self, entry: Entry, frames: Sequence[int] | None = None) -> Images:
        """uint8 (n, h, w, c): the frames named, or all."""
        image = read_image(entry.image, axis=self.reading.axis)
        if image.frames != entry.frames:
            raise DataError(entry.image, f"it holds {image.frames} frames, its header says {entry.frames}")
        wanted = range(image.frames) if frames is None else frames
        return np.stack([self.reading.frame(image, f, self.channels, self.image_size) for f in wanted])

    def header(self, entry: Entry) -> Header:
        return read_header(entry.image, axis=self.reading.axis)

    def mask_values(self, entry: Entry) -> NDArray[np.int64]:
        """The numbers that occur in an entry's mask, whose size must be its picture's."""
        assert entry.mask is not None
        mask, header = read_mask(entry.mask, axis=self.reading.axis), self.header(entry)
        size = (header.frames, *header.image_size)
        if mask.shape != size:
            sizes = f"it is {_sizes(mask.shape)}, {entry.image.name} is {_sizes(size)}"
            raise DataError(entry.mask, sizes, "make them equal")
        return np.unique(mask)

    def mask(self, entry: Entry, frames: Sequence[int] | None = None) -> Images:
        """Classes, uint8 (n, h, w)."""
        assert entry.mask is not None
        mask = read_mask(entry.mask, axis=self.reading.axis)
        mask = mask if frames is None else mask[list(frames)]
        if self.masks == "binary":
            classes = (mask > 0).astype(np.uint8)
        else:
            assert self.mask_table is not None
            classes = self.mask_table[mask]
        canvas = self.reading.canvas
        if canvas is not None:
            classes = np.stack([laid(m[..., None], canvas)[..., 0] for m in classes])
        return np.stack([resize_mask(m, self.image_size) for m in classes])

    def survivors(self, entries: Sequence[_T], results: Sequence[object]) -> list[_T]:
        """The entries that gave a result and not an error; the first error is raised unless bad files are skipped."""
        for result in results:
            if isinstance(result, DataError):
                if not self.skip_bad or isinstance(result, MissingPackage):
                    raise result
                self.skipped.append(str(result))
        return [e for e, r in zip(entries, results, strict=True) if not isinstance(r, DataError)]


class FileSource:
    """Files too many for the memory: decoded when they are read. A sample is a frame of an entry."""

    def __init__(
        self, reader: FileReader, entries: Sequence[Entry], size: tuple[int, int], *, segmentation: bool
    ) -> None:
        self.reader, self.entries, self.size, self.segmentation = reader, entries, size, segmentation
        self.samples = [(e, f) for e in entries for f in range(e.frames)]
        self._volumes: OrderedDict[Path, tuple[Images, Images | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        """In the calling thread: the loader already reads several batches at once."""
        images = np.empty((len(positions), *self.size, self.reader.channels), dtype=np.uint8)
        masks = np.empty((len(positions), *self.size), dtype=np.uint8)
        labels = np.array([self.samples[i][0].label for i in positions], dtype=np.int64)
        for n, position in enumerate(positions):
            entry, frame = self.samples[position]
            whole, whole_mask = self._load(entry)
            images[n] = whole[frame]
            if whole_mask is not None:
                masks[n] = whole_mask[frame]
        return images, masks if self.segmentation else labels

    def _load(self, entry: Entry) -> tuple[Images, Images | None]:
        """A file's frames; those of volumes are kept for the next ones that are asked for."""
        with self._lock:
            if entry.image in self._volumes:
                self._volumes.move_to_end(entry.image)
                return self._volumes[entry.image]
        found = self.reader.images(entry), self.reader.mask(entry) if self.segmentation else None
        if entry.frames > 1:
            with self._lock:
                self._volumes[entry.image] = found
                while len(self._volumes) > _KEPT_VOLUMES:
                    self._volumes.popitem(last=False)
        return found


def check_headers(
    reader: FileReader, listed: dict[str, list[Entry]], layout: str
) -> tuple[dict[str, list[Entry]], tuple[int, int]]:
    """The readable entries with their frames and groups, and the size of all; decides channels and canvas."""
    kept: dict[str, list[Entry]] = {}
    first: tuple[Path, tuple[int, int]] | None = None
    largest = (0, 0)
    grey = True
    for split, entries in listed.items():
        headers = by_threads(reader.header, entries, "headers")
        kept[split] = []
        reader.survivors(entries, headers)
        for entry, header in zip(entries, headers, strict=True):
            if isinstance(header, DataError):
                continue
            kept[split].append(replace(entry, frames=header.frames, group=entry.group or header.group))
            grey = grey and header.grey
            first = first or (entry.image, header.image_size)
            largest = max(largest[0], header.image_size[0]), max(largest[1], header.image_size[1])
            if reader.image_size is None and not reader.pad and header.image_size != first[1]:
                sizes = f"it is {_times(header.image_size)}, {first[0]} is {_times(first[1])}"
                raise DataError(entry.image, sizes, "give an image size to resize all, or ?fit=pad")
    if first is None:
        raise DataError(reader.path, "it has no readable picture", layout)
    reader.channels = 1 if grey else 3
    if reader.pad:
        # Multiples of 16, so that a U-Net's four halvings lose nothing.
        canvas = -(-largest[0] // 16) * 16, -(-largest[1] // 16) * 16
        reader.reading = replace(reader.reading, canvas=canvas)
        return kept, reader.image_size or canvas
    return kept, reader.image_size or first[1]


def check_masks(reader: FileReader, entries: dict[str, list[Entry]]) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """The readable pairs and the classes; decides how mask numbers become classes."""
    kept, values = {}, {}
    for split, listed in entries.items():
        found = by_threads(reader.mask_values, listed, "masks")
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


def make_part(reader: FileReader, entries: list[Entry], size: tuple[int, int], *, segmentation: bool) -> Part:
    """Decode every file once: into memory where they fit, else to see that they are whole."""
    samples = sum(entry.frames for entry in entries)
    in_memory = samples * size[0] * size[1] * (reader.channels + 1) <= _IN_MEMORY_BYTES
    empty = np.empty(0, dtype=np.uint8)

    def decode(entry: Entry) -> tuple[Images, Images]:
        images = reader.images(entry)
        masks = reader.mask(entry) if segmentation else empty
        return (images, masks) if in_memory else (empty, empty)

    decoded = by_threads(decode, entries, "images")
    entries = reader.survivors(entries, decoded)
    labels = np.array([entry.label for entry in entries for _ in range(entry.frames)], dtype=np.int64)
    source: Source
    if in_memory:
        images = np.empty((len(labels), *size, reader.channels), dtype=np.uint8)
        masks = np.empty((len(labels) if segmentation else 0, *size), dtype=np.uint8)
        at = 0
        for found in decoded:
            if not isinstance(found, DataError):
                stop = at + len(found[0])
                images[at:stop] = found[0]
                if segmentation:
                    masks[at:stop] = found[1]
                at = stop
        source = ArraySource(images, masks if segmentation else labels)
    else:
        source = FileSource(reader, entries, size, segmentation=segmentation)
    return Part(source, None if segmentation else labels, groups_of(entries))


def groups_of(entries: Sequence[Entry]) -> tuple[str, ...] | None:
    """Whose each sample is; None where every sample is of a file and a patient of its own."""
    names = [entry.group or f"file {entry.image}" for entry in entries]
    if len(set(names)) == len(names) and all(e.frames == 1 and e.group is None for e in entries):
        return None
    return tuple(name for name, entry in zip(names, entries, strict=True) for _ in range(entry.frames))


def by_threads(function: Callable[[_T], _R], items: Sequence[_T], what: str = "reading") -> list[_R | DataError]:
    """The function of each item, or its DataError, by a few threads (decoders release the GIL)."""
    count = Count(what, len(items))

    def guarded(item: _T) -> _R | DataError:
        try:
            return function(item)
        except DataError as error:
            return error
        finally:
            count.one()

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(guarded, items))


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _sizes(size: tuple[int, ...]) -> str:
    """Frames are worth a word only where there are several."""
    return _times(size[1:]) if size[0] == 1 else f"{size[0]} frames of {_times(size[1:])}"
