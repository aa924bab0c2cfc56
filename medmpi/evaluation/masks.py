"""Masks against masks: Dice and intersection over union per image and class, and object by object."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


def dice_per_image(confusions: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """Dice and IoU (n, classes) from confusion matrices (n, classes, classes) of pixels, rows true.

    NaN where a class is in neither the truth nor the prediction of an image: there is nothing to measure there.
    """
    hit = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, predicted = confusions.sum(2), confusions.sum(1)
    union = true + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * hit / (true + predicted), hit / union


@dataclass(frozen=True)
class Match:
    """Objects of one class in one image or many: found and missed ones, and how well the found ones fit."""

    truth: int
    predicted: int
    matched: int
    dice_sum: float
    iou_sum: float

    def __add__(self, other: Match) -> Match:
        return Match(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))  # type: ignore[arg-type]

    @property
    def f1(self) -> float:
        """Of detection: an object counts as found where one of the prediction overlaps it by half or more."""
        total = self.truth + self.predicted
        return 2 * self.matched / total if total else math.nan

    @property
    def dice(self) -> float:
        """Mean Dice over the true objects; a missed one counts 0."""
        return self.dice_sum / self.truth if self.truth else math.nan

    @property
    def panoptic_quality(self) -> float:
        """Mean IoU of the matched objects times the F1 of detection (Kirillov et al. 2019)."""
        total = self.truth + self.predicted
        return 2 * self.iou_sum / total if total else math.nan


def _fields(match: Match) -> tuple[float, ...]:
    return match.truth, match.predicted, match.matched, match.dice_sum, match.iou_sum


def instances(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Connected regions (8 neighbours) of a mask (h, w), numbered from 1 in the order of their first pixel.

    Runs of pixels along the rows are joined by union-find: time goes with the number of runs, not of pixels.
    """
    mask = np.asarray(mask, bool)
    if mask.ndim != 2:
        raise ValueError(f"instances: mask has rank {mask.ndim}, expected 2")
    labels = np.zeros(mask.shape, np.int32)
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    start, end = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, i = int(first[row - 1]), int(first[row])
        while above < first[row] and i < first[row + 1]:
            # touching, corners included: neither ends before the other begins
            if start[i] <= end[above] and start[above] <= end[i]:
                a, b = root(above), root(i)
                parent[max(a, b)] = min(a, b)
            if end[above] < end[i]:
                above += 1
            else:
                i += 1
    numbers: dict[int, int] = {}
    for i, row in enumerate(rows.tolist()):
        labels[row, start[i] : end[i]] = numbers.setdefault(root(i), len(numbers) + 1)
    return labels, len(numbers)


def match_instances(truth: NDArray[np.integer], predicted: NDArray[np.integer], threshold: float = 0.5) -> Match:
    """Objects of two maps (h, w; 0 is background, else an object's number) that overlap by an IoU above ``threshold``.

    From 0.5 on a match is unique, so no assignment has to be solved. Dice is that of the best partner of each true
    object, matched or not. ValueError for a threshold below 0.5 or maps of different sizes.
    """
    if not 0.5 <= threshold < 1 or truth.shape != predicted.shape:
        raise ValueError(
            f"match_instances: threshold is {threshold}, maps are {truth.shape} and {predicted.shape}, expected "
            "0.5 <= threshold < 1 and equal sizes"
        )
    names, t = np.unique(truth, return_inverse=True)
    others, p = np.unique(predicted, return_inverse=True)
    both = np.bincount(t.ravel() * len(others) + p.ravel(), minlength=len(names) * len(others))
    both = both.reshape(len(names), len(others)).astype(np.float64)
    size_t, size_p = both.sum(1), both.sum(0)
    both, size_t, size_p = both[names != 0][:, others != 0], size_t[names != 0], size_p[others != 0]
    if not both.size:
        return Match(len(size_t), len(size_p), 0, 0.0, 0.0)
    iou = both / (size_t[:, None] + size_p[None] - both)
    dice = 2 * both / (size_t[:, None] + size_p[None])
    found = iou[iou > threshold]
    return Match(len(size_t), len(size_p), int(found.size), float(dice.max(1).sum()), float(found.sum()))
