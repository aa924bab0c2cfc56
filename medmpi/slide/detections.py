"""From a heatmap to detections: local maxima, each suppressing what is near it; one CSV a slide (``score,x,y``)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.files import replacing
from medmpi.slide.heatmap import Heatmap


@dataclass(frozen=True)
class Detection:
    """A place in level-0 pixels and how sure it is."""

    score: float
    x: float
    y: float


def from_heatmap(
    heat: Heatmap, *, radius: float, threshold: float = 0.5, smooth: float = 0.0, name: str | None = None
) -> list[Detection]:
    """Non-maximum suppression: the highest point becomes a detection and clears the disc of ``radius`` around it
    (level-0 pixels), again until none passes ``threshold``.

    ``smooth`` is the deviation of a Gaussian in level-0 pixels that goes before. Best first.
    """
    if radius < 0 or not 0 < threshold <= 1:
        raise ValueError(f"detect: radius is {radius} and threshold {threshold}, expected 0 or more and 0 to 1")
    step = heat.meta.step
    scores = np.ascontiguousarray(heat.of(name))
    if smooth > 0:
        scores = K.gaussian_filter(scores, sigma=smooth / step, mode="constant")
    rows, columns = np.nonzero((scores >= threshold) & (heat.counts > 0))
    order = np.argsort(-scores[rows, columns], kind="stable")  # equal scores: the upper left one first
    free = np.ones(scores.shape, bool)
    reach = int(radius / step)
    span = np.arange(-reach, reach + 1)
    disc = span[:, None] ** 2 + span[None, :] ** 2 <= (radius / step) ** 2
    found = []
    for y, x in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if not free[y, x]:
            continue
        found.append(Detection(float(scores[y, x]), x * step, y * step))
        y0, y1 = max(y - reach, 0), min(y + reach + 1, scores.shape[0])
        x0, x1 = max(x - reach, 0), min(x + reach + 1, scores.shape[1])
        free[y0:y1, x0:x1] &= ~disc[y0 - y + reach : y1 - y + reach, x0 - x + reach : x1 - x + reach]
    return found


def write_csv(path: Path, found: Sequence[Detection]) -> None:
    """``score,x,y`` with a header, best first."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["score", "x", "y"])
        writer.writerows([f"{d.score:.9g}", f"{d.x:.1f}", f"{d.y:.1f}"] for d in found)


def read_csv(path: Path) -> list[Detection]:
    """The inverse; a header may be missing, as in the challenge's own files. DataError names the line."""
    found = []
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise DataError(path, error.strerror or error, "expected detections as score,x,y") from error
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line]
        if not any(cells) or (number == 1 and cells[0].lower() in ("score", "confidence", "probability")):
            continue
        try:
            score, x, y = (float(cell) for cell in cells)
            if not np.isfinite([score, x, y]).all():
                raise ValueError("it is not finite")
            if not 0 <= score <= 1:
                raise ValueError("the score is not between 0 and 1")
        except ValueError as error:
            raise DataError(path, f"line {number} is {','.join(line)!r}: {error}", "expected score,x,y") from None
        found.append(Detection(score, x, y))
    return found
