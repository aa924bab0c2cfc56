"""Operating points: a threshold is chosen on validation and then held to on test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .curves import roc_curve
from .intervals import Interval, wilson

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does to a split: counts, and rates with Wilson intervals."""

    threshold: float
    hits: int
    misses: int
    alarms: int
    rejected: int
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    accuracy: Interval


def choose_threshold(
    positive: Flags, score: NDArray[np.floating], rule: str = "youden", *, at_least: float = 0.95
) -> float:
    """The threshold (positive where score >= it) that a rule takes on these samples, between two scores.

    * ``youden``: the largest sensitivity + specificity (Youden 1950), the same as the largest balanced accuracy;
    * ``accuracy``: the most correct samples;
    * ``sensitivity``: the highest specificity with a sensitivity of ``at_least``;
    * ``specificity``: the highest sensitivity with a specificity of ``at_least``.

    ValueError for another rule or where a class is missing.
    """
    alarms, hits, thresholds = roc_curve(positive, score)
    share = float(np.mean(positive))
    if rule == "youden":
        worth = hits - alarms
    elif rule == "accuracy":
        worth = share * hits + (1 - share) * (1 - alarms)
    elif rule == "sensitivity":
        worth = np.where(hits >= at_least, 1 - alarms, -1.0)
    elif rule == "specificity":
        worth = np.where(1 - alarms >= at_least, hits, -1.0)
    else:
        raise ValueError(f"choose_threshold: rule is {rule!r}, expected youden, accuracy, sensitivity or specificity")
    best = int(np.argmax(worth))
    top = thresholds[1]
    this = thresholds[best] if best else np.nextafter(top, np.inf)
    if best == 0 or best == len(thresholds) - 1:
        return float(this)
    return float((this + thresholds[best + 1]) / 2)  # between two samples: neither side is favoured on new ones


def apply_threshold(positive: Flags, score: NDArray[np.floating], threshold: float) -> OperatingPoint:
    """What a threshold that was chosen elsewhere does here."""
    positive = np.asarray(positive, bool)
    called = np.asarray(score) >= threshold
    hits, misses = int((positive & called).sum()), int((positive & ~called).sum())
    alarms, rejected = int((~positive & called).sum()), int((~positive & ~called).sum())
    return OperatingPoint(
        threshold=float(threshold),
        hits=hits,
        misses=misses,
        alarms=alarms,
        rejected=rejected,
        sensitivity=wilson(hits, hits + misses),
        specificity=wilson(rejected, rejected + alarms),
        ppv=wilson(hits, hits + alarms),
        npv=wilson(rejected, rejected + misses),
        accuracy=wilson(hits + rejected, hits + misses + alarms + rejected),
    )
