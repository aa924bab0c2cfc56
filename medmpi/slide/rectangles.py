"""Patches that lie side by side as rectangles: windows of neighbours share what one tile of them all computes once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medmpi.slide.grid import Cells

Shape: TypeAlias = tuple[int, int]  # rows and columns of patches


class Rectangle(NamedTuple):
    """``rows`` x ``columns`` patches from patch (row, column)."""

    row: int
    column: int
    rows: int = 1
    columns: int = 1

    @property
    def patches(self) -> list[tuple[int, int]]:
        """(row, column) of each, row by row."""
        return [(self.row + i, self.column + j) for i in range(self.rows) for j in range(self.columns)]


def cover(cells: Cells, shapes: Sequence[Shape]) -> list[Rectangle]:
    """Rectangles of the given shapes that hold each of the cells (n, 2) once, those of the first shapes first.

    The result depends on the set of cells alone. ``shapes`` end with (1, 1), so that nothing is left over.
    """
    if not len(cells):
        return []
    axes = [np.unique(cells[:, axis], return_inverse=True) for axis in (0, 1)]
    # Of empty rows and columns one is kept between others: what is far apart stays apart, in a small array.
    places = [np.concatenate([[0], np.cumsum(np.minimum(np.diff(values), 2))]) for values, _ in axes]
    at = [place[inverse.ravel()] for place, (_, inverse) in zip(places, axes, strict=True)]
    free = np.zeros([int(place[-1]) + 1 for place in places], bool)
    free[at[0], at[1]] = True
    origin = [dict(zip(place.tolist(), values.tolist(), strict=True))
              for place, (values, _) in zip(places, axes, strict=True)]  # fmt: skip
    found: list[Rectangle] = []
    total = _sums(free)
    for h, w in shapes:
        if h >= total.shape[0] or w >= total.shape[1]:
            continue
        inside = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
        before = len(found)
        for y, x in np.argwhere(inside == h * w).tolist():
            if free[y : y + h, x : x + w].all():
                free[y : y + h, x : x + w] = False
                found.append(Rectangle(origin[0][y], origin[1][x], h, w))
        if len(found) > before:
            total = _sums(free)
    if free.any():
        raise ValueError(f"cover: shapes are {list(shapes)}, expected (1, 1) as the last")
    return found


def _sums(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of all rows above and columns left of a place."""
    total = np.zeros((marked.shape[0] + 1, marked.shape[1] + 1), np.int64)
    total[1:, 1:] = marked.cumsum(0).cumsum(1)
    return total
