"""Where a slide has tissue: Otsu's threshold on hue and saturation of a thumbnail at 1/32 (S4-03).

Hue is an angle: a threshold on it as a number cuts the red tissue whose hue passes the seam. Here it is the distance
from the saturation-weighted mean direction of all hues, so the mask does not change when all hues turn together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmpi import kernels as K
from medmpi.slide.reader import BadTile, Pixels, Slide

DOWNSAMPLE = 32
MODES = ("hs", "hsv")
_BLOCK = 64  # thumbnail pixels a side that are read at once
_LEAST_SATURATION = 0.05  # below, a pixel is grey: glass, dust and pen shadows; Otsu splits even an empty slide
_LEAST_HUE = 1 / 8  # of the circle: haematoxylin and eosin lie within it of their mean
_DARK = 70 / 255  # hsv mode: folds and pen


@dataclass(frozen=True)
class Tissue:
    """``mask`` bool (h, w) at 1/``downsample`` of level 0, with the thresholds that made it."""

    mask: NDArray[np.bool_]
    thumbnail: Pixels
    downsample: int
    mode: str
    saturation: float
    hue_centre: float
    hue_distance: float
    value: float

    @property
    def fraction(self) -> float:
        """Share of the thumbnail that is tissue."""
        return float(self.mask.mean())


def thumbnail(
    slide: Slide, downsample: int = DOWNSAMPLE, *, progress: Callable[[float], None] = lambda share: None
) -> tuple[Pixels, NDArray[np.bool_]]:
    """uint8 (ceil(H/d), ceil(W/d), 3): box averages of the coarsest level that is fine enough.

    With it, bool (h, w): where the slide could not be read. ``progress`` is told the share that is done.
    """
    level = slide.level_below(downsample)
    h, w = slide.shapes[0]
    factor = downsample / slide.downsamples[level]
    rows, columns = -(-h // downsample), -(-w // downsample)
    out, bad = np.full((rows, columns, 3), 255, np.uint8), np.zeros((rows, columns), bool)

    def fill(y: int, x: int, h: int, w: int) -> None:
        """One block; one that cannot be read is tried in quarters, to lose no more than it must."""
        top, left = int(y * factor), int(x * factor)
        bottom, right = int(np.ceil((y + h) * factor)), int(np.ceil((x + w) * factor))
        try:
            block = slide.read(level, top, left, bottom - top, right - left)
        except BadTile:
            if h * w == 1:
                bad[y, x] = True
                return
            halves = [[(a, n // 2), (a + n // 2, n - n // 2)] if n > 1 else [(a, n)] for a, n in ((y, h), (x, w))]
            for a, m in halves[0]:
                for b, n in halves[1]:
                    fill(a, b, m, n)
            return
        box = (x * factor - left, y * factor - top, (x + w) * factor - left, (y + h) * factor - top)
        small = Image.fromarray(block).resize((w, h), Image.Resampling.BOX, box)
        out[y : y + h, x : x + w] = np.asarray(small)

    for y in range(0, rows, _BLOCK):
        for x in range(0, columns, _BLOCK):
            fill(y, x, min(_BLOCK, rows - y), min(_BLOCK, columns - x))
            progress((y + min(_BLOCK, rows - y) * (x + _BLOCK) / columns) / rows)
    return out, bad


def find_tissue(picture: Pixels, *, mode: str = "hs", downsample: int = DOWNSAMPLE) -> Tissue:
    """Tissue of a thumbnail; ``mode`` "hs" thresholds hue and saturation, "hsv" the value too (S4: training)."""
    if mode not in MODES:
        raise ValueError(f"find_tissue: mode is {mode!r}, expected one of {', '.join(MODES)}")
    hsv = K.rgb_to_hsv(np.ascontiguousarray(picture))
    hue, saturation, value = (np.ascontiguousarray(hsv[..., i]) for i in range(3))
    grey = saturation < _LEAST_SATURATION
    centre, distance = _hue_distance(hue, saturation, grey)
    s = max(K.otsu_threshold(saturation), _LEAST_SATURATION)
    d = max(K.otsu_threshold(distance), _LEAST_HUE)
    v = K.otsu_threshold(value)
    mask = (saturation > s) & (distance <= d)
    if mode == "hsv":
        mask &= (value >= _DARK) & (value <= v)
    return Tissue(mask, picture, downsample, mode, s, centre, d, v)


def _hue_distance(
    hue: NDArray[np.float32], saturation: NDArray[np.float32], grey: NDArray[np.bool_]
) -> tuple[float, NDArray[np.float32]]:
    """The mean hue in [0, 1) and each pixel's distance from it in [0, 1/2]; a grey has no hue and is furthest."""
    weight = np.where(grey, 0, saturation).astype(np.float64)
    total = (weight * np.exp(2j * np.pi * hue.astype(np.float64))).sum()
    centre = float(np.angle(total) / (2 * np.pi) % 1) if abs(total) > 0 else 0.0
    apart = np.abs(hue.astype(np.float64) - centre)
    distance = np.where(grey, 0.5, np.minimum(apart, 1 - apart))
    return centre, np.ascontiguousarray(distance, np.float32)


def preview(tissue: Tissue, patches: NDArray[np.bool_] | None = None, patch: float = 7.0) -> Pixels:
    """The thumbnail with the tissue's outline in green and the edges of chosen patches in blue, for looking at."""
    picture = tissue.thumbnail.copy()
    m = np.pad(tissue.mask, 1)
    inner = m[1:-1, 1:-1] & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    if patches is not None:
        for r, c in np.argwhere(patches):
            y0, y1, x0, x1 = (round(v * patch) for v in (r, r + 1, c, c + 1))
            picture[y0:y1, x0 : x0 + 1] = picture[y0 : y0 + 1, x0:x1] = (90, 120, 255)
    picture[tissue.mask & ~inner] = (0, 200, 0)
    return picture
