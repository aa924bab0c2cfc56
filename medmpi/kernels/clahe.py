"""Contrast-limited adaptive histogram equalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arrays import resident, result_for, shape_of

#: Pixels of a tile at most: its counts are whole 32-bit numbers that float32 scales.
_LARGEST_TILE = 2**31 - 1


def clahe(
    image: NDArray[Any],
    clip_limit: float = 40.0,
    tile_grid: int | tuple[int, int] = (8, 8),
    *,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) with OpenCV's results.

    Each tile maps a level to the share of its pixels at or below it, from a histogram whose bins are cut at a limit;
    a pixel blends the mappings of the four tiles around it. Where a side is no multiple of its tiles, both sides are
    extended by mirroring about their last pixels, as in OpenCV.

    Args:
        image: C-contiguous uint8 or uint16 grey image (H, W), or images (N, H, W), each on its own.
        clip_limit: the most a bin may hold, as a multiple of the tile's mean count per level (256 or 65536 of them),
            at least one pixel; 0 sets no limit.
        tile_grid: rows and columns of tiles, or one number for both. OpenCV's ``tileGridSize`` is (columns, rows).
        out: array of image's shape and dtype to fill; it may not overlap ``image``.

    Returns:
        The equalised images, of image's shape and dtype: equal to ``cv2.createCLAHE(...).apply`` bit for bit.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: another number of dimensions, a side of
        length 0, a limit that is negative or not finite, a grid below 1.
    """
    image = resident(image)
    shape = shape_of("clahe", "image", image)
    kernel = {"uint8": _core.clahe_uint8, "uint16": _core.clahe_uint16}.get(image.dtype.name)
    if kernel is None:
        raise TypeError(f"clahe: image has dtype {image.dtype}, expected uint8 or uint16")
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"clahe: image has shape {shape}, expected (H, W) or (N, H, W) of at least 1")
    if not (math.isfinite(clip_limit) and clip_limit >= 0):
        raise ValueError(f"clahe: clip_limit is {clip_limit}, expected a finite number >= 0")
    grid = (tile_grid, tile_grid) if isinstance(tile_grid, int) else tuple(tile_grid)
    if len(grid) != 2 or any(not isinstance(n, int | np.integer) or n < 1 for n in grid):
        raise ValueError(f"clahe: tile_grid is {tile_grid}, expected two whole numbers of at least 1")
    if math.prod(-(-side // n) + 1 for side, n in zip(shape[-2:], grid, strict=True)) > _LARGEST_TILE:
        raise ValueError(f"clahe: an image {shape[-2:]} in a grid {grid} has tiles of more than {_LARGEST_TILE} pixels")
    y = result_for("clahe", image, shape, out, image.dtype)
    kernel(image, y, (math.prod(shape[:-2]), *shape[-2:]), clip_limit, grid)
    return y
