"""Mammograms with marked regions: the union of their masks, and pieces of breast that no mask touches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .entries import Entry, FileReader, by_threads
from .errors import DataError
from .medical import to_levels
from .opened import Part
from .picture import resize_image, resize_mask, to_channels
from .readers import read_image, read_mask
from .source import ArraySource, Images

if TYPE_CHECKING:
    from .cbis_ddsm import Case

_TRIES = 64


def breast_mask(image: Images) -> NDArray[np.bool_]:
    """Where a mammogram (h, w) uint8 shows tissue: the largest connected part above Otsu's threshold (Otsu 1979).

    The threshold is halved towards the background, since skin and fat are dark; labels and markers, which are smaller
    than the breast, fall away. All True for an image of one value.
    """
    h, w = image.shape
    part, step = _breast_part(image)
    return np.repeat(np.repeat(part, step, axis=0), step, axis=1)[:h, :w]


def breast_box(image: Images) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of ``breast_mask``; all of the image where it shows none."""
    h, w = image.shape
    part, step = _breast_part(image)
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return 0, 0, h, w
    bottom, right = min((int(rows[-1]) + 1) * step, h), min((int(columns[-1]) + 1) * step, w)
    return int(rows[0]) * step, int(columns[0]) * step, bottom, right


def _breast_part(image: Images) -> tuple[NDArray[np.bool_], int]:
    """The mask of every so many-th pixel of every so many-th row, and how many."""
    from medmpi import kernels

    step = max(1, max(image.shape) // 256)
    small = np.ascontiguousarray(image[::step, ::step])
    if small.min() == small.max():
        return np.ones(small.shape, dtype=bool), step
    threshold = (float(kernels.otsu_threshold(small)) + float(small.min())) / 2
    return largest_part(small > threshold), step


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected part of a mask (h, w), by runs of rows and union-find."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    changes = np.flatnonzero(np.diff(padded, axis=1))
    rows, edges = (found.reshape(-1, 2) for found in np.divmod(changes, padded.shape[1] - 1))
    runs = list(zip(rows[:, 0].tolist(), edges[:, 0].tolist(), edges[:, 1].tolist(), strict=True))
    parent = list(range(len(runs)))
    above = 0  # the first run that may touch the present one from the row above
    for number, (row, first, stop) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] <= first):
            above += 1
        other = above
        while runs[other][0] == row - 1 and runs[other][1] < stop:
            parent[_root(parent, other)] = _root(parent, number)
            other += 1
    roots = np.array([_root(parent, number) for number in range(len(runs))], np.int64)
    out = np.zeros_like(mask)
    if len(runs):
        sizes = np.bincount(roots, edges[:, 1] - edges[:, 0])
        for row, first, stop in np.array(runs)[roots == sizes.argmax()].tolist():
            out[row, first:stop] = True
    return out


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


class RegionMasks:
    """Full mammograms with the union of the masks of their abnormalities."""

    def __init__(self, reader: FileReader, entries: list[Entry], cases: Sequence[Case], size: tuple[int, int]) -> None:
        self.reader, self.entries, self.size = reader, entries, size
        self.masks: dict[Path, list[Path]] = {}
        for case in cases:
            self.masks.setdefault(case.full, []).append(case.mask)

    def _sample(self, entry: Entry) -> tuple[Images, Images]:
        image = self.reader.images(entry)[0]
        union = None
        for file in self.masks[entry.image]:
            mask = read_mask(file)[0] > 0
            union = mask if union is None else union | mask
        assert union is not None
        return image, resize_mask(union.astype(np.uint8), self.size)

    def part(self) -> Part:
        """All samples, in memory."""
        found = by_threads(self._sample, self.entries)
        kept = self.reader.survivors(self.entries, found)
        pairs = [f for f in found if not isinstance(f, DataError)]
        if not pairs:
            raise DataError(self.reader.path, "no mammogram can be read", "fetch them again")
        images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        return Part(ArraySource(images, masks), None, tuple(str(e.group) for e in kept))


class Patches:
    """Normal pieces, one for each case: as large as its crop, of breast, without a pixel of any abnormality."""

    def __init__(self, reader: FileReader, cases: list[Case], size: tuple[int, int]) -> None:
        self.reader, self.cases, self.size = reader, cases, size

    def added_to(self, part: Part) -> Part:
        """The part with these samples, of class 0, at its end."""
        found = by_threads(self._of_image, list({case.full: None for case in self.cases}))
        pieces = [piece for piece in found if not isinstance(piece, DataError)]
        self.reader.survivors(found, found)
        images = [image for piece, _ in pieces for image in piece]
        groups = [group for _, owners in pieces for group in owners]
        everything, labels = part.source.read(np.arange(len(part)))
        if images:
            everything = np.concatenate([everything, np.stack(images)])
            labels = np.concatenate([labels, np.zeros(len(images), np.int64)])
        owners = (*(part.groups or ()), *groups)
        return Part(ArraySource(everything, labels), labels, owners)

    def _of_image(self, file: Path) -> tuple[list[Images], list[str]]:
        """Places are drawn by the file's name, so that they are the same on every machine."""
        cases = [case for case in self.cases if case.full == file]
        image = to_levels(read_image(file), self.reader.reading.levels, frame=0)[0]
        grey = to_channels(image, 1)[..., 0]
        breast = breast_mask(grey)
        marked = np.zeros(grey.shape, dtype=bool)
        for case in cases:
            marked |= read_mask(case.mask)[0] > 0
        seed = int.from_bytes(hashlib.sha256(file.name.encode() + cases[0].patient.encode()).digest()[:8], "little")
        rng = np.random.Generator(np.random.Philox(seed))
        rows, columns = np.nonzero(breast & ~marked)
        images = []
        for case in cases:
            from .readers import read_header

            h, w = (min(a, b) for a, b in zip(read_header(case.crop).image_size, grey.shape, strict=True))
            for index in rng.integers(0, max(len(rows), 1), _TRIES).tolist() if len(rows) else []:
                top = min(max(int(rows[index]) - h // 2, 0), grey.shape[0] - h)
                left = min(max(int(columns[index]) - w // 2, 0), grey.shape[1] - w)
                window = np.s_[top : top + h, left : left + w]
                if not marked[window].any() and breast[window].mean() > 0.5:
                    images.append(resize_image(to_channels(image[window], self.reader.channels), self.size))
                    break
        return images, [cases[0].patient] * len(images)
