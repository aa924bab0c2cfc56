"""From what a format found to a data set: missing splits, label checks, resizing, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Dataset, Split, Task, pixel_statistics
from .errors import DataError
from .groups import check_groups, group_split
from .partition import Ids
from .reading import Reading
from .source import ArraySource, ResizedSource, Source, memory_limit, resize
from .split import stratified_split

# A resized copy of the whole data set is kept in memory up to this size; beyond, images are resized as they are read.
_RESIZED_BYTES = min(1 << 30, memory_limit())


@dataclass(frozen=True)
class Part:
    """The samples that a format found for one split; ``labels`` is None for masks.

    ``groups`` says whose each sample is (a patient, a volume): a group never gets into two splits.
    """

    source: Source
    labels: NDArray[np.int64] | None
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Opened:
    """What a format found. ``parts`` has "train" and those of "val" and "test" that the files name."""

    path: str
    task: Task
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    parts: Mapping[str, Part]
    skipped: tuple[str, ...] = ()
    reading: Reading | None = None


def assemble(
    opened: Opened, *, name: str, spec: str, image_size: tuple[int, int] | None, seed: int, val_fraction: float
) -> Dataset:
    """The data set of what was found.

    Splits that the files lack are cut from the training samples, stratified by class: with neither, validation and test
    get ``val_fraction`` each; with only one of them, validation does and a missing test split stays empty (cutting one
    from files that somebody had already split would leak or shrink them unasked).
    """
    if not 0 <= val_fraction < 0.5:
        raise ValueError(f"open_dataset: val_fraction is {val_fraction}, expected 0 <= val_fraction < 0.5")
    size = image_size or opened.image_size
    train = opened.parts["train"]
    check_groups(opened.path, {n: p.groups for n, p in opened.parts.items()})
    positions = {n: (p, np.arange(len(p), dtype=np.int64)) for n, p in opened.parts.items()}
    if "val" not in positions:
        fractions = (val_fraction, 0.0 if "test" in positions else val_fraction)
        cut = _cut(opened, train, fractions, seed)
        missing = [n for n in SPLITS if n == "train" or n not in positions]
        positions |= {n: (train, p) for n, p in zip(SPLITS, cut, strict=True) if n in missing}
    positions.setdefault("test", (train, np.empty(0, dtype=np.int64)))
    if not len(positions["train"][1]):
        raise DataError(opened.path, "the training split is empty", "add training images")
    _check_training(opened, positions["train"])
    sources: dict[int, Source] = {}
    splits = {}
    for split_name in SPLITS:
        part, ids = positions[split_name]
        source = sources.setdefault(id(part), _resized(part.source, size, opened.channels))
        labels = None if part.labels is None else part.labels[ids]
        groups = None if part.groups is None else tuple(part.groups[i] for i in ids)
        splits[split_name] = Split(split_name, source, ids, labels, groups)
    mean, std = pixel_statistics(splits["train"], opened.channels, size[0] * size[1] * (opened.channels + 1))
    for split in splits.values():
        split.mean, split.std = mean, std
    return Dataset(
        name,
        spec,
        opened.task,
        opened.classes,
        opened.channels,
        size,
        splits,
        mean,
        std,
        opened.skipped,
        opened.reading,
    )


def _cut(opened: Opened, train: Part, fractions: tuple[float, float], seed: int) -> tuple[Ids, Ids, Ids]:
    """Training samples, validation and test, by whole groups where there are any."""
    positions = np.arange(len(train), dtype=np.int64)
    if train.groups is None:
        return stratified_split(train.labels, positions, fractions=fractions, seed=seed)
    count, parts = len(set(train.groups)), 1 + sum(f > 0 for f in fractions)
    if count < parts:
        raise DataError(
            opened.path,
            f"its samples are of {count} patient{'s' * (count > 1)} (or other groups), {parts} parts need as many",
            "add some, or give train/, val/ and test/",
        )
    numbers = np.unique(np.asarray(train.groups), return_inverse=True)[1].astype(np.int64)
    return group_split(train.labels, numbers, positions, fractions=fractions, seed=seed)


def _check_training(opened: Opened, training: tuple[Part, Ids]) -> None:
    """Cutting by groups may have taken a class away from training."""
    part, ids = training
    if part.labels is not None and part.groups is not None:
        counts = np.bincount(part.labels[ids], minlength=len(opened.classes))
        for k in np.flatnonzero(counts == 0):
            raise DataError(
                opened.path,
                f"all patients (or other groups) with class {opened.classes[k]} fell to validation and test",
                "add some, or give another seed",
            )


def _resized(source: Source, size: tuple[int, int], channels: int) -> Source:
    if isinstance(source, ArraySource) and source.images.shape[1:3] != size:
        if len(source) * size[0] * size[1] * (channels + 1) <= _RESIZED_BYTES:
            targets = source.targets
            if targets.ndim > 1:
                targets = resize(targets[..., None], size, nearest=True)[..., 0]
            return ArraySource(resize(source.images, size), targets)
        return ResizedSource(source, size)
    return source


def check_classes(path: str, labels: Mapping[str, NDArray[np.int64]], *, what: str = "label") -> int:
    """How many classes the training labels have; DataError unless they are 0..K-1, each present, and the rest fit."""
    present = np.unique(labels["train"])
    if present.size and present[0] < 0:
        raise DataError(path, f"a train {what} is {present[0]}", f"number the {what}s from 0")
    if present.size < 2:
        raise DataError(path, f"the train {what}s are all {present.tolist()}", "two classes or more are needed")
    gaps = np.flatnonzero(present != np.arange(present.size))
    if gaps.size:
        raise DataError(
            path,
            f"class {gaps[0]} has no training sample although the highest {what} is {present[-1]}",
            f"number the {what}s 0..{present.size - 1} without gaps",
        )
    for split, values in labels.items():
        wrong = np.flatnonzero((values < 0) | (values >= present.size))
        if wrong.size:
            raise DataError(
                path,
                f"{split} {what} {wrong[0]} is {values[wrong[0]]}, but training has classes 0..{present.size - 1}",
                f"correct the {what} or add training samples of its class",
            )
    return int(present.size)
