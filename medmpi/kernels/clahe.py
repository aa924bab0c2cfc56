"""Contrast-limited adaptive histogram equalisation."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from . import _core
from .arguments import number, pair
from .arrays import dtype_of, resident, result_for, shape_of

#: Pixels of a tile at most: its counts are whole 32-bit numbers that float32 scales.
_LARGEST_TILE = 2**31 - 1
_LARGEST_TABLES = 1 << 30  # bytes: a level for each level and tile
_DTYPES = ("uint8", "uint16")


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
    kernel = {"uint8": _core.clahe_uint8, "uint16": _core.clahe_uint16}[dtype_of("clahe", "image", image, *_DTYPES)]
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"clahe: image has shape {shape}, expected (H, W) or (N, H, W) of at least 1")
    clip_limit = number("clahe", "clip_limit", clip_limit)
    if not (math.isfinite(clip_limit) and clip_limit >= 0):
        raise ValueError(f"clahe: clip_limit is {clip_limit}, expected a finite number >= 0")
    grid = pair("clahe", "tile_grid", tile_grid, 1)
    if math.prod(grid) << 8 * image.dtype.itemsize > _LARGEST_TABLES // image.dtype.itemsize:
        raise ValueError(f"clahe: tile_grid is {grid}, expected fewer tiles: their tables take more than 1 GiB")
    if math.prod(-(-side // n) + 1 for side, n in zip(shape[-2:], grid, strict=True)) > _LARGEST_TILE:
        raise ValueError(f"clahe: an image {shape[-2:]} in a grid {grid} has tiles of more than {_LARGEST_TILE} pixels")
    y = result_for("clahe", image, shape, out, image.dtype)
    kernel(image, y, (math.prod(shape[:-2]), *shape[-2:]), clip_limit, grid)
    return y
