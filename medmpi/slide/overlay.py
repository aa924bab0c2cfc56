"""Heatmaps as pictures: over the slide (PNG), and as a pyramid that QuPath and OpenSlide open (TIFF)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmpi.files import replacing
from medmpi.slide.heatmap import Heatmap
from medmpi.slide.reader import Pixels, Slide

_TILE = 256
_ALPHA = 0.45


def colours(values: NDArray[np.floating]) -> Pixels:
    """Scores in [0, 1] as RGB (..., 3) of the turbo map."""
    from matplotlib import colormaps

    table = (np.asarray(colormaps["turbo"](np.linspace(0, 1, 256)))[:, :3] * 255).round().astype(np.uint8)
    found: Pixels = table[np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)]
    return found


def transparent(heat: Heatmap, name: str | None = None) -> Pixels:
    """RGBA (rows, columns, 4) of the heatmap's points: clear where nothing was evaluated."""
    scores = heat.of(name)
    alpha = np.where(heat.counts > 0, 60 + 150 * np.clip(scores, 0, 1), 0)
    return np.concatenate([colours(scores), alpha[..., None].round().astype(np.uint8)], axis=-1)


def region(
    heat: Heatmap, slide: Slide | None, downsample: float, y: int, x: int, h: int, w: int, *, name: str | None = None
) -> Pixels:
    """uint8 (h, w, 3) at 1/``downsample`` of level 0: the slide with the heatmap over it, each point at its place."""
    if slide is None:
        picture = np.full((h, w, 3), 255, np.uint8)
    else:
        level = slide.level_below(downsample)
        factor = downsample / slide.downsamples[level]
        top, left = int(y * factor), int(x * factor)
        bottom, right = int(np.ceil((y + h) * factor)), int(np.ceil((x + w) * factor))
        box = (x * factor - left, y * factor - top, (x + w) * factor - left, (y + h) * factor - top)
        source = slide.read(level, top, left, bottom - top, right - left)
        picture = np.asarray(Image.fromarray(source).resize((w, h), Image.Resampling.BOX, box))
    scores, step = heat.of(name), heat.meta.step
    rows, columns = (
        np.clip(np.floor((np.arange(start, start + n) + 0.5) * downsample / step + 0.5).astype(np.int64), 0, limit - 1)
        for start, n, limit in ((y, h, scores.shape[0]), (x, w, scores.shape[1]))
    )
    covered = heat.counts[np.ix_(rows, columns)] > 0
    colour = colours(scores[np.ix_(rows, columns)])
    blended = np.rint(picture * (1 - _ALPHA) + colour * _ALPHA).astype(np.uint8)
    return np.where(covered[..., None], blended, picture)


def size_at(heat: Heatmap, downsample: float) -> tuple[int, int]:
    """Height and width of the slide at 1/``downsample``."""
    h, w = heat.meta.level0_shape
    return max(1, round(h / downsample)), max(1, round(w / downsample))


def fitting(heat: Heatmap, side: int) -> float:
    """The downsample at which the slide's longer side is at most ``side`` pixels."""
    return max(1.0, max(heat.meta.level0_shape) / side)


def write_png(path: Path, heat: Heatmap, slide: Slide | None, *, side: int = 2048, name: str | None = None) -> None:
    """The overlay as one picture; small slides and coarse heatmaps are shown as they are."""
    downsample = fitting(heat, side)
    h, w = size_at(heat, downsample)
    picture = np.empty((h, w, 3), np.uint8)
    for y in range(0, h, _TILE):
        rows = min(_TILE, h - y)
        picture[y : y + rows] = region(heat, slide, downsample, y, 0, rows, w, name=name)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, compress_level=1)


def write_pyramid(path: Path, heat: Heatmap, slide: Slide | None, *, side: int = 8192, name: str | None = None) -> None:
    """The overlay as a tiled pyramid with its microns per pixel; memory is that of a tile."""
    import tifffile

    first = fitting(heat, side)
    levels = max(1, int(np.ceil(np.log2(max(size_at(heat, first)) / _TILE))) + 1)
    mpp = heat.meta.mpp
    base = None if mpp is None else sum(mpp) / 2 / heat.meta.downsample
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as file:
        for level in range(levels):
            downsample = first * 2**level
            h, w = size_at(heat, downsample)
            resolution: dict[str, Any] = {}
            if base is not None:
                per_cm = 1e4 / (base * downsample)
                resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            file.write(
                _tiles(heat, slide, downsample, h, w, name), shape=(h, w, 3), dtype=np.uint8, tile=(_TILE, _TILE),
                photometric="rgb", compression="jpeg", compressionargs={"level": 90}, metadata=None,
                subfiletype=1 if level else 0, software="medmpi", **resolution,
            )  # fmt: skip


def _tiles(heat: Heatmap, slide: Slide | None, downsample: float, h: int, w: int, name: str | None) -> Iterator[Pixels]:
    for y in range(0, h, _TILE):
        for x in range(0, w, _TILE):
            tile = np.full((_TILE, _TILE, 3), 255, np.uint8)
            rows, columns = min(_TILE, h - y), min(_TILE, w - x)
            tile[:rows, :columns] = region(heat, slide, downsample, y, x, rows, columns, name=name)
            yield tile
