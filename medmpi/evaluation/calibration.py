"""Whether a probability of 0.8 means eight in ten: reliability, expected calibration error, temperature scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
_GOLDEN = (math.sqrt(5) - 1) / 2
_LOG_RANGE = math.log(100.0)  # of temperatures: 0.01 to 100


@dataclass(frozen=True)
class Calibration:
    """Temperature fitted on one split; errors of another before and after."""

    temperature: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    brier_before: float
    brier_after: float


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Reals:
    """Probabilities (n, classes) in float64 of logits divided by the temperature."""
    z = np.asarray(logits, np.float64) / temperature
    z = z - z.max(1, keepdims=True)
    e: Reals = np.exp(z)
    p: Reals = e / e.sum(1, keepdims=True)
    return p


def nll(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood."""
    z = np.asarray(logits, np.float64) / temperature
    z = z - z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]).mean())


def reliability(
    probabilities: Reals, labels: NDArray[np.integer], bins: int = 15
) -> tuple[Reals, Reals, NDArray[np.int64]]:
    """Mean confidence, accuracy and count in ``bins`` equal bins of the largest probability; NaN where one is empty."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(which, confidence, bins) / counts
        accuracy = np.bincount(which, right.astype(float), bins) / counts
    return mean, accuracy, counts.astype(np.int64)


def expected_calibration_error(probabilities: Reals, labels: NDArray[np.integer], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins, by their counts (Guo et al. 2017, eq. 3)."""
    if len(labels) == 0:
        return math.nan
    mean, accuracy, counts = reliability(probabilities, labels, bins)
    gaps = np.abs(np.nan_to_num(mean - accuracy))
    return float((gaps * counts).sum() / counts.sum())


def brier_score(probabilities: Reals, labels: NDArray[np.integer]) -> float:
    """Mean squared distance of the probabilities from the one-hot labels, summed over classes (Brier 1950)."""
    truth = np.zeros_like(probabilities)
    truth[np.arange(len(labels)), labels] = 1
    return float(((probabilities - truth) ** 2).sum(1).mean()) if len(labels) else math.nan


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature of the smallest negative log-likelihood (Guo et al. 2017), within 0.01 to 100.

    The likelihood has one peak over 1/temperature, so a golden-section search finds it. ValueError without samples or
    with logits that are not finite.
    """
    if len(labels) == 0 or not np.isfinite(logits).all():
        raise ValueError(f"fit_temperature: {len(labels)} samples, expected some, with finite logits")
    low, high = -_LOG_RANGE, _LOG_RANGE
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    fa, fb = nll(logits, labels, math.exp(a)), nll(logits, labels, math.exp(b))
    while high - low > 1e-6:
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - _GOLDEN * (high - low)
            fa = nll(logits, labels, math.exp(a))
        else:
            low, a, fa = a, b, fb
            b = low + _GOLDEN * (high - low)
            fb = nll(logits, labels, math.exp(b))
    return math.exp((low + high) / 2)


def calibrate(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    on: tuple[NDArray[np.floating], NDArray[np.integer]],
) -> Calibration:
    """Fits the temperature on ``logits`` and ``labels`` (validation) and measures it on others (test)."""
    t = fit_temperature(logits, labels)
    others, truth = on
    before, after = softmax(others), softmax(others, t)
    return Calibration(
        temperature=t,
        ece_before=expected_calibration_error(before, truth),
        ece_after=expected_calibration_error(after, truth),
        nll_before=nll(others, truth),
        nll_after=nll(others, truth, t),
        brier_before=brier_score(before, truth),
        brier_after=brier_score(after, truth),
    )
