"""ROC and precision-recall curves of a score that is high for positives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]


def roc_curve(positive: Flags, score: NDArray[np.floating]) -> tuple[Reals, Reals, Reals]:
    """False and true positive rates for falling thresholds (positive where score >= threshold), from (0, 0) to (1, 1).

    The first threshold is infinite. ValueError where one of the classes is missing.
    """
    thresholds, hits, alarms = _counts(positive, score)
    return (
        np.concatenate(([0.0], alarms / alarms[-1])),
        np.concatenate(([0.0], hits / hits[-1])),
        np.concatenate(([np.inf], thresholds)),
    )


def precision_recall_curve(positive: Flags, score: NDArray[np.floating]) -> tuple[Reals, Reals, Reals]:
    """Precision and recall for falling thresholds, from (precision, 0) to (prevalence, 1) of recall.

    ValueError where one of the classes is missing.
    """
    thresholds, hits, alarms = _counts(positive, score)
    precision = hits / (hits + alarms)
    return (
        np.concatenate((precision[:1], precision)),
        np.concatenate(([0.0], hits / hits[-1])),
        np.concatenate(([np.inf], thresholds)),
    )


def average_precision(positive: Flags, score: NDArray[np.floating]) -> float:
    """The sum of precision times the rise of recall, without interpolation; NaN where a class is missing."""
    try:
        precision, recall, _ = precision_recall_curve(positive, score)
    except ValueError:
        return float("nan")
    return float((np.diff(recall) * precision[1:]).sum())


def _counts(positive: Flags, score: NDArray[np.floating]) -> tuple[Reals, Reals, Reals]:
    """Distinct scores from the highest on, and the positives and negatives at or above each."""
    positive = np.asarray(positive, bool)
    values = np.asarray(score, np.float64)
    if positive.shape != values.shape or positive.ndim != 1:
        raise ValueError(f"curve: {positive.shape} labels and {values.shape} scores, expected one each")
    if not np.isfinite(values).all():
        raise ValueError("curve: a score is not finite")
    if positive.all() or not positive.any():
        raise ValueError("curve: only one class is present, expected positives and negatives")
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    return values[last], np.cumsum(positive)[last].astype(float), np.cumsum(~positive)[last].astype(float)
