"""Free-response ROC of detections by the rules of CAMELYON16 (Ehteshami Bejnordi et al., JAMA 2017; S4-33).

At level 5 (0.243 um x 32 a pixel) the truth grows by everything nearer to tumour than 75 um / (2 x pixel size) pixels,
holes are filled, and each 8-connected region is a lesion. A region whose major axis is below 275 um holds isolated
tumour cells: it is no lesion, and detections in it count neither way. A detection in a lesion makes it found with the
best score of those in it; every other detection is a false positive. The score of the FROC is the mean sensitivity at
1/4, 1/2, 1, 2, 4 and 8 false positives a slide, over all slides, with and without lesions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medmpi.slide.detections import Detection

LEVEL, BASE_MPP = 5, 0.243
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_GROW_UM, _ITC_UM = 75.0, 275.0
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Regions:
    """Numbered regions (h, w) of a slide's truth, 0 outside, and which of them hold isolated tumour cells."""

    labels: NDArray[np.int32]
    isolated: frozenset[int]
    downsample: float

    @property
    def lesions(self) -> list[int]:
        return [n for n in range(1, int(self.labels.max(initial=0)) + 1) if n not in self.isolated]


@dataclass
class SlideHits:
    """One slide: the best score in each lesion (None: not found), the scores of its false positives, and how many
    regions of isolated tumour cells it has."""

    lesions: list[float | None] = field(default_factory=list)
    false_positives: list[float] = field(default_factory=list)
    isolated: int = 0


@dataclass(frozen=True)
class Froc:
    """The curve from the highest threshold down, its sensitivities at ``RATES`` and their mean."""

    thresholds: Reals
    false_positives: Reals
    sensitivity: Reals
    at_rates: tuple[float, ...]
    score: float
    lesions: int
    slides: int


def evaluation_regions(truth: NDArray[np.bool_], *, mpp: float = BASE_MPP, level: int = LEVEL) -> Regions:
    """The regions of a truth mask (h, w) at ``level`` of a slide of ``mpp`` microns a level-0 pixel."""
    from scipy import ndimage

    pixel = mpp * 2**level
    if not truth.any():
        return Regions(np.zeros(truth.shape, np.int32), frozenset(), 2.0**level)
    near = ndimage.distance_transform_edt(~truth) < _GROW_UM / (2 * pixel)
    filled = ndimage.binary_fill_holes(near)
    labels, count = ndimage.label(filled, structure=np.ones((3, 3)))
    isolated = {n for n in range(1, count + 1) if _major_axis(labels == n) < _ITC_UM / pixel}
    return Regions(labels.astype(np.int32), frozenset(isolated), 2.0**level)


def _major_axis(region: NDArray[np.bool_]) -> float:
    """The length of the major axis of the ellipse with the region's second moments, in pixels (scikit-image's)."""
    y, x = np.nonzero(region)
    matrix = np.array([[np.var(y), 0], [0, np.var(x)]])
    matrix[0, 1] = matrix[1, 0] = np.mean((y - y.mean()) * (x - x.mean()))
    return float(4 * np.sqrt(np.linalg.eigvalsh(matrix)[-1]))


def hits(found: Sequence[Detection], regions: Regions | None) -> SlideHits:
    """What the detections of a slide hit; ``regions`` is None for a slide without lesions."""
    if regions is None:
        return SlideHits([], [d.score for d in found])
    best: dict[int, float] = {}
    outside = []
    h, w = regions.labels.shape
    for d in found:
        y, x = int(d.y / regions.downsample), int(d.x / regions.downsample)
        n = int(regions.labels[y, x]) if 0 <= y < h and 0 <= x < w and d.y >= 0 and d.x >= 0 else 0
        if n == 0:
            outside.append(d.score)
        elif n not in regions.isolated:
            best[n] = max(best.get(n, -np.inf), d.score)
    return SlideHits([best.get(n) for n in regions.lesions], outside, len(regions.isolated))


def froc(slides: Sequence[SlideHits], *, official: bool = False) -> Froc:
    """The curve of all slides. Thresholds are all distinct scores: a detection counts if its score is at least that.

    A rate between two points of the curve is read off the line between them, as the challenge does. ``official``
    leaves out the smallest threshold, as its code does. ValueError without slides or lesions.
    """
    if not slides:
        raise ValueError("froc: there are no slides")
    lesions = [score for slide in slides for score in slide.lesions]
    if not lesions:
        raise ValueError("froc: the slides have no lesions, sensitivity has no meaning")
    hit = np.array([score for score in lesions if score is not None], np.float64)
    wrong = np.array([score for slide in slides for score in slide.false_positives], np.float64)
    scores = [hit, wrong]
    if official and (len(hit) < len(lesions) or any(slide.isolated for slide in slides)):
        scores.append(np.zeros(1))  # its list of true positives has 0 for each region that no detection counts in
    thresholds = np.unique(np.concatenate(scores))[::-1]
    if official:
        thresholds = thresholds[:-1]
    false = np.array([(wrong >= t).sum() for t in thresholds], np.float64) / len(slides)
    sensitivity = np.array([(hit >= t).sum() for t in thresholds], np.float64) / len(lesions)
    # nothing is reported above all scores
    false, sensitivity = np.concatenate([[0.0], false]), np.concatenate([[0.0], sensitivity])
    at = np.interp(RATES, false, sensitivity)
    return Froc(
        np.concatenate([[np.inf], thresholds]), false, sensitivity, tuple(at.tolist()), float(at.mean()), len(lesions),
        len(slides),
    )  # fmt: skip
