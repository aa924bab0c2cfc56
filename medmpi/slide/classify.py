"""Slide-level scores: features of heatmaps, a random forest, AUC with its confidence interval (S4-09, S4-32)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medmpi.slide.heatmap import Heatmap

Reals = NDArray[np.float64]
_THRESHOLDS = (0.5, 0.9)
_REGION = (
    "regions", "area", "area_of_tissue", "largest_area", "largest_axis", "largest_max", "largest_mean",
    "largest_extent", "largest_eccentricity", "second_area",
)  # fmt: skip
FEATURES = (
    "max", "mean", "p95", "p99", "sum_of_tissue",
    *(f"{name}_{threshold}" for threshold in _THRESHOLDS for name in _REGION),
)  # fmt: skip


def at_stride(heat: Heatmap, stride: int) -> Heatmap:
    """The heatmap that a coarser stride would have given: every k-th point of this one, the same windows.

    ValueError where ``stride`` is no multiple.
    """
    k, rest = divmod(stride, heat.meta.stride)
    if rest or k < 1:
        raise ValueError(f"at_stride: stride is {stride}, expected a multiple of the heatmap's {heat.meta.stride}")
    return Heatmap(heat.scores[::k, ::k], heat.counts[::k, ::k], replace(heat.meta, stride=stride))


def features(heat: Heatmap, *, name: str | None = None) -> Reals:
    """float64 (len(FEATURES),): global ones, and of the connected regions above 0.5 and 0.9. Areas are mm^2, axes mm,
    where the slide tells its microns, else level-0 pixels."""
    from scipy import ndimage

    scores, covered = heat.of(name).astype(np.float64), heat.counts > 0
    mpp = 1.0 if heat.meta.mpp is None else sum(heat.meta.mpp) / 2 / heat.meta.downsample / 1000
    side = heat.meta.step * mpp
    inside = scores[covered]
    if not inside.size:
        return np.zeros(len(FEATURES))
    found = [inside.max(), inside.mean(), *np.percentile(inside, [95, 99]), inside.sum() / inside.size]
    for threshold in _THRESHOLDS:
        mask = (scores >= threshold) & covered
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        if not count:
            found += [0.0] * len(_REGION)
            continue
        sizes = np.bincount(labels.ravel())[1:]
        order = np.argsort(-sizes, kind="stable")
        largest = labels == order[0] + 1
        major, minor = _axes(largest)
        y, x = np.nonzero(largest)
        box = (np.ptp(y) + 1) * (np.ptp(x) + 1)
        found += [
            float(count), mask.sum() * side**2, mask.sum() / inside.size, sizes[order[0]] * side**2, major * side,
            scores[largest].max(), scores[largest].mean(), sizes[order[0]] / box,
            float(np.sqrt(max(0.0, 1 - (minor / major) ** 2))), sizes[order[1]] * side**2 if count > 1 else 0.0,
        ]  # fmt: skip
    return np.array(found, np.float64)


def _axes(region: NDArray[np.bool_]) -> tuple[float, float]:
    """Major and minor axis of the ellipse with a region's second moments."""
    y, x = (v.astype(np.float64) for v in np.nonzero(region))
    cross = np.mean((y - y.mean()) * (x - x.mean()))
    matrix = np.array([[np.var(y) + 1 / 12, cross], [cross, np.var(x) + 1 / 12]])
    low, high = np.linalg.eigvalsh(matrix)
    return float(4 * np.sqrt(high)), float(4 * np.sqrt(low))


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve with its 95 % interval (DeLong, DeLong and Clarke-Pearson 1988), cut at 0 and 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}, {self.high:.3f})"


def auc_interval(positive: NDArray[np.bool_], score: Reals) -> Auc:
    """ValueError where one class is missing or a score is no number. With one slide of a class its variance is
    unknown: the interval is NaN."""
    if not np.isfinite(score).all():
        raise ValueError(f"auc: {int((~np.isfinite(score)).sum())} scores are not finite, expected numbers")
    above, below = score[positive], score[~positive]
    m, n = len(above), len(below)
    if not m or not n:
        raise ValueError(f"auc: {m} positive and {n} negative slides, expected some of each")
    wins = (above[:, None] > below[None, :]) + 0.5 * (above[:, None] == below[None, :])
    value = float(wins.mean())
    if min(m, n) < 2:
        return Auc(value, float("nan"), float("nan"))
    variance = np.var(wins.mean(1), ddof=1) / m + np.var(wins.mean(0), ddof=1) / n
    half = 1.959964 * float(np.sqrt(variance))
    return Auc(value, max(0.0, value - half), min(1.0, value + half))


def forest_scores(
    train: Reals, labels: NDArray[np.bool_], test: Reals, *, seed: int = 0, trees: int = 500
) -> tuple[Reals, Reals]:
    """Probabilities of ``test`` rows by a random forest fitted on ``train``, and the features' importance."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(n_estimators=trees, random_state=seed, n_jobs=1, class_weight="balanced")
    forest.fit(train, labels)
    return np.asarray(forest.predict_proba(test)[:, 1], np.float64), np.asarray(forest.feature_importances_)


def cross_scores(
    rows: Reals, labels: NDArray[np.bool_], *, folds: int = 5, seed: int = 0, trees: int = 500,
    groups: Sequence[str] | None = None,
) -> tuple[Reals, Reals]:  # fmt: skip
    """As :func:`forest_scores` for every row by a forest that has not seen it (nor, with ``groups``, its patient)."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    smaller = int(min(labels.sum(), (~labels).sum()))
    if smaller < 2:
        raise ValueError(f"classify: the smaller class has {smaller} slides, expected 2 or more to cross-validate")
    folds = min(folds, smaller)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    scores, importance = np.empty(len(rows)), np.zeros(rows.shape[1])
    for inside, outside in kind(folds, shuffle=True, random_state=seed).split(rows, labels, groups):
        scores[outside], found = forest_scores(rows[inside], labels[inside], rows[outside], seed=seed, trees=trees)
        importance += found / folds
    return scores, importance
