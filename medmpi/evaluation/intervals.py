"""Confidence intervals: of proportions (Wilson), of the area under an ROC curve (DeLong), of anything (bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval; NaN where it cannot be had."""

    value: float
    low: float
    high: float
    method: str

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})" if self.value == self.value else "–"


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (1927), which also works near 0 and 1. ValueError for hits > n."""
    if not 0 <= hits <= n:
        raise ValueError(f"wilson: {hits} hits of {n}, expected 0 to {n}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, "Wilson")
    z = _quantile(level)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < n else 1.0, "Wilson")


def delong(positive: Flags, score: NDArray[np.floating], level: float = 0.95) -> Interval:
    """Area under the ROC curve with DeLong's interval (1988, by midranks as Sun and Xu 2014); ties count half.

    The interval is cut to 0..1. With one positive or one negative the variance is unknown: its ends are NaN. Where the
    classes are told apart without an error DeLong's variance is 0, however few samples there are: the interval then is
    Newcombe's (2006, method 5), which solves for the areas from which such a sample is not too unlikely.
    """
    positive = np.asarray(positive, bool)
    values = np.asarray(score, np.float64)
    if positive.shape != values.shape or positive.ndim != 1:
        raise ValueError(f"delong: {positive.shape} labels and {values.shape} scores, expected one each")
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0 or not np.isfinite(values).all():
        return Interval(math.nan, math.nan, math.nan, "DeLong")
    ranks = _midranks(values)
    # how often each positive lies above the negatives, and each negative below the positives
    v10 = (ranks[positive] - _midranks(values[positive])) / n
    v01 = 1 - (ranks[~positive] - _midranks(values[~positive])) / m
    area = float(v10.mean())
    if area in (0.0, 1.0):
        away = _newcombe(m, n, _quantile(level))
        return Interval(area, away if area else 0.0, 1.0 if area else 1 - away, "Newcombe")
    if m < 2 or n < 2:
        return Interval(area, math.nan, math.nan, "DeLong")
    half = _quantile(level) * math.sqrt(float(v10.var(ddof=1)) / m + float(v01.var(ddof=1)) / n)
    return Interval(area, max(0.0, area - half), min(1.0, area + half), "DeLong")


def _newcombe(m: int, n: int, z: float) -> float:
    """The lower end for an area of 1 of m positives and n negatives: 1 - a = z sqrt(V(a)), V of Hanley and McNeil."""
    half = (m + n) / 2
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        a = (low + high) / 2
        variance = a * (1 - a) / (m * n) * (2 * half - 1 - (3 * half - 3) / ((2 - a) * (1 + a)))
        low, high = (a, high) if 1 - a > z * math.sqrt(variance) else (low, a)
    return low


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    strata: NDArray[np.integer],
    *,
    clusters: NDArray[np.integer] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of ``statistic(indices)`` over resamples (Efron 1979) within each stratum (class).

    Samples of one patient are alike, so that with ``clusters``, the number of each sample's patient, whole patients are
    drawn instead (strata do not matter then): intervals that took the samples as independent would be too narrow.
    Resamples on which the statistic is not finite are left out.
    """
    strata = np.asarray(strata)
    rng = np.random.default_rng(seed)
    of = strata if clusters is None else np.asarray(clusters)
    groups = [np.flatnonzero(of == k) for k in np.unique(of)]
    found = []
    for _ in range(samples):
        if clusters is None:
            drawn = np.concatenate([group[rng.integers(0, len(group), len(group))] for group in groups])
        else:
            drawn = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        value = statistic(drawn)
        if math.isfinite(value):
            found.append(value)
    value = statistic(np.arange(len(strata)))
    method = "bootstrap" if clusters is None else "bootstrap by patient"
    if not found:
        return Interval(value, math.nan, math.nan, method)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), method)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, expected between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _midranks(values: Reals) -> Reals:
    """Ranks from 1, equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Reals = (last - (counts - 1) / 2)[inverse]
    return ranks
