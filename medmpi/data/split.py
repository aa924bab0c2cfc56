"""Training, validation and test parts of samples that come without a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .partition import Ids
from .random import Purpose, permutation


def stratified_split(
    labels: NDArray[np.int64] | None, positions: Ids, *, fractions: tuple[float, float], seed: int
) -> tuple[Ids, Ids, Ids]:
    """Ascending (train, first part, second part) of ``positions``, the parts of the given ``fractions`` of each class.

    ``labels`` are those of ``positions``; None treats all samples as one class. A part gets at least one sample of each
    class that has enough for all parts, and training always keeps at least one.
    """
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise ValueError(f"stratified_split: fractions are {fractions}, expected each >= 0 and a sum below 1")
    order = permutation(len(positions), seed=seed, purpose=Purpose.SPLIT)
    groups = [order] if labels is None else [order[labels[order] == k] for k in np.unique(labels)]
    parts: tuple[list[Ids], ...] = ([], [], [])
    for group in groups:
        start = 0
        wanted = sum(f > 0 for f in fractions)
        for part, fraction in zip(parts[1:], fractions, strict=True):
            count = round(fraction * len(group))
            if fraction > 0 and len(group) > wanted:
                count = max(count, 1)
            count = min(count, max(len(group) - start - 1, 0))
            part.append(group[start : start + count])
            start += count
        parts[0].append(group[start:])
    empty = np.empty(0, dtype=np.int64)
    train, first, second = (np.sort(positions[np.concatenate([empty, *part])]) for part in parts)
    return train, first, second
