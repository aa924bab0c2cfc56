"""What every data set is once it is open: splits of samples with labels or masks, classes, and pixel statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .partition import Ids
from .random import Purpose, sample_bits
from .reading import Reading
from .source import Images, Source, Targets

Task: TypeAlias = Literal["classification", "segmentation"]
SPLITS = ("train", "val", "test")
_CHUNK_BYTES = 4 << 20


class Split:
    """The samples of one part of a data set, numbered from 0.

    ``mean`` and ``std`` (float32, per channel, of pixels scaled to 0..1) are those of the training split in every split
    of a data set. ``groups`` says whose each sample is, where the data tell.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        positions: Ids,
        labels: NDArray[np.int64] | None,
        groups: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.source, self.positions, self.groups = name, source, positions, groups
        self._labels = labels
        self.mean: NDArray[np.float32] = np.zeros(1, dtype=np.float32)
        self.std: NDArray[np.float32] = np.ones(1, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each sample, int64 (N,). ValueError for segmentation, whose targets are masks."""
        if self._labels is None:
            raise ValueError(f"Split.labels: the {self.name} split has masks, expected a classification data set")
        return self._labels

    def read(self, ids: ArrayLike) -> tuple[Images, Targets]:
        """Images uint8 (n, h, w, c) and labels int64 (n,) or masks uint8 (n, h, w) of the samples ``ids``.

        IndexError for an id outside 0..len-1; DataError names the file that cannot be read. Threads may call it
        at once.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.ndim != 1:
            raise ValueError(f"Split.read: ids have rank {wanted.ndim}, expected 1")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            bad = wanted[(wanted < 0) | (wanted >= len(self))][0]
            raise IndexError(f"Split.read: id {bad} is not in the {self.name} split of {len(self)} samples")
        return self.source.read(self.positions[wanted])


@dataclass(frozen=True)
class Dataset:
    """An open data set. ``std`` is 1 for a channel that is constant, so that normalising never divides by zero.

    ``skipped`` holds one line for each file left out on request (``bad="skip"``). ``reading`` is how files became
    pixels, None where the data are pixels already.
    """

    name: str
    spec: str
    task: Task
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    splits: Mapping[str, Split]
    mean: NDArray[np.float32] = field(repr=False)
    std: NDArray[np.float32] = field(repr=False)
    skipped: tuple[str, ...] = ()
    reading: Reading | None = None

    def describe(self) -> str:
        """One line: task, size, classes and how many samples each split has."""
        counts = ", ".join(f"{len(self.splits[name])} {name}{self._groups(name)}" for name in SPLITS)
        h, w = self.image_size
        skipped = f", {len(self.skipped)} bad files skipped" if self.skipped else ""
        return f"{self.spec}: {self.task}, {h}x{w}x{self.channels}, {len(self.classes)} classes, {counts}{skipped}"

    def _groups(self, split: str) -> str:
        groups = self.splits[split].groups
        return "" if groups is None else f" (of {len(set(groups))} groups)"

    def describe_classes(self) -> str | None:
        """One line: how many samples of each class the splits have; None for segmentation."""
        if self.task != "classification":
            return None
        counts = [class_counts(self, name) for name in SPLITS]
        shown = [f"{name} {'/'.join(str(c[k]) for c in counts)}" for k, name in enumerate(self.classes)]
        return f"{', '.join(shown[:20])}{' ...' if len(shown) > 20 else ''} (train/val/test)"


def chunks(split: Split, sample_bytes: int) -> list[Ids]:
    """The split's ids in pieces of a few MiB of pixels, for passes over all of it."""
    step = max(1, _CHUNK_BYTES // max(sample_bytes, 1))
    return [np.arange(i, min(i + step, len(split)), dtype=np.int64) for i in range(0, len(split), step)]


def pixel_statistics(split: Split, channels: int, sample_bytes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (over all pixels, biased) per channel of pixels / 255, float32 (channels,).

    Taken from counts of the 256 values, so they are exact and do not depend on the order of reading. A constant channel
    gets 1 for its deviation.
    """
    counts = np.zeros((channels, 256), dtype=np.int64)
    for ids in chunks(split, sample_bytes):
        images, _ = split.read(ids)
        for c in range(channels):
            counts[c] += np.bincount(images[..., c].reshape(-1), minlength=256)
    levels = np.arange(256, dtype=np.int64)
    mean, std = np.empty(channels, dtype=np.float32), np.empty(channels, dtype=np.float32)
    for c in range(channels):
        # Whole numbers of Python: a constant channel has a variance of exactly 0, not of a rounding error.
        total, first, second = (int((counts[c] * levels**power).sum()) for power in range(3))
        variance = max(total * second - first * first, 0)
        mean[c] = first / (255 * total) if total else 0.0
        std[c] = math.sqrt(variance) / (255 * total) if variance else 1.0
    return mean, std


def class_counts(dataset: Dataset, split: str = "train") -> NDArray[np.int64]:
    """Samples of each class of a split, or pixels of each class for segmentation; int64 (classes,)."""
    part, k = dataset.splits[split], len(dataset.classes)
    if dataset.task == "classification":
        return np.bincount(part.labels, minlength=k).astype(np.int64)
    counts = np.zeros(k, dtype=np.int64)
    h, w = dataset.image_size
    for ids in chunks(part, h * w * (dataset.channels + 1)):
        counts += np.bincount(part.read(ids)[1].reshape(-1), minlength=k)
    return counts


def examples(
    dataset: Dataset, split: str = "train", *, per_class: int = 4, seed: int = 0
) -> list[tuple[str, Images, Targets]]:
    """For pictures: (class name, up to ``per_class`` images, their labels) per class, drawn by ``seed``.

    For segmentation one entry, named after the split, of ``per_class`` images with their masks.
    """
    part = dataset.splits[split]
    bits = sample_bits(np.arange(len(part)), 1, seed=seed, epoch=0, purpose=Purpose.EXAMPLES)[:, 0]
    order = np.argsort(bits, kind="stable")
    if dataset.task == "segmentation":
        return [(split, *part.read(order[:per_class]))]
    drawn: Sequence[Ids] = [order[part.labels[order] == k][:per_class] for k in range(len(dataset.classes))]
    return [(name, *part.read(ids)) for name, ids in zip(dataset.classes, drawn, strict=True)]
