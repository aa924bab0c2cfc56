"""The grid of patches over a slide, their order and groups, and the heatmap's points that each patch owns.

Everything is in pixels of the level that is analysed. A patch (r, c) is the square [P r, P (r + 1)) x [P c, P (c + 1)).
The heatmap has a point at every (s i, s j) inside the slide; its value is the score of the window whose centre it is:
rows s i - h // 2 to s i - h // 2 + h - 1. A patch owns the points inside it, for any stride, and its windows read at
most h / 2 pixels beyond it on each side (S4-11: 112).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PATCH, CONTEXT = 224, 112
Cells = NDArray[np.int32]


def group_size(memory: int, patch_bytes: int) -> int:
    """S4's N_p = floor(M / S): patches of ``patch_bytes`` that ``memory`` holds. ValueError where that is none."""
    if memory < patch_bytes or patch_bytes < 1:
        raise ValueError(f"group_size: memory is {memory} bytes, expected room for one patch of {patch_bytes}")
    return memory // patch_bytes


def group_count(patches: int, size: int) -> int:
    """S4's N_g = ceil(T_p / N_p)."""
    return -(-patches // size)


def grid_shape(shape: tuple[int, int], patch: int = PATCH) -> tuple[int, int]:
    """Rows and columns of patches that cover a level of ``shape`` pixels."""
    return -(-shape[0] // patch), -(-shape[1] // patch)


def patches_with_tissue(
    mask: NDArray[np.bool_], shape: tuple[int, int], pixels: float, *, patch: int = PATCH, least: float = 0.0
) -> NDArray[np.bool_]:
    """bool (rows, columns): S4's patch matrix, true where more than ``least`` of a patch is tissue.

    ``pixels`` is the size of a mask pixel in those of the level of ``shape``.
    """
    rows, columns = grid_shape(shape, patch)
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    total[1:, 1:] = mask.cumsum(0).cumsum(1)

    def edges(count: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        start = np.floor(np.arange(count) * patch / pixels + 1e-9).astype(np.int64)
        stop = np.ceil((np.arange(count) + 1) * patch / pixels - 1e-9).astype(np.int64)
        return np.minimum(start, limit), np.minimum(stop, limit)

    (y0, y1), (x0, x1) = edges(rows, mask.shape[0]), edges(columns, mask.shape[1])
    found = total[np.ix_(y1, x1)] - total[np.ix_(y0, x1)] - total[np.ix_(y1, x0)] + total[np.ix_(y0, x0)]
    area = np.maximum(np.outer(y1 - y0, x1 - x0), 1)
    return found > least * area


def morton_order(cells: Cells) -> NDArray[np.int64]:
    """Positions that sort (row, column) cells along Morton's curve: groups become compact and share few neighbours."""
    key = np.zeros(len(cells), np.uint64)
    rows, columns = (cells[:, i].astype(np.uint64) for i in range(2))
    for bit in range(31):
        one = np.uint64(1)
        key |= (columns >> np.uint64(bit) & one) << np.uint64(2 * bit)
        key |= (rows >> np.uint64(bit) & one) << np.uint64(2 * bit + 1)
    return np.argsort(key, kind="stable")


@dataclass(frozen=True)
class Points:
    """The heatmap's points that a patch owns along one axis: ``first`` is the index i of the first, ``count`` of them.

    Their windows start at ``start`` (it may be negative), ``stride`` apart.
    """

    first: int
    count: int
    start: int


def points(index: int, limit: int, stride: int, window: int, patch: int = PATCH) -> Points:
    """Points of patch row (or column) ``index`` of a level ``limit`` pixels long."""
    first = -(-index * patch // stride)
    last = -(-min((index + 1) * patch, limit) // stride)
    return Points(first, max(last - first, 0), first * stride - window // 2)


def heatmap_shape(shape: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the heatmap of a level of ``shape`` pixels."""
    return -(-shape[0] // stride), -(-shape[1] // stride)
