"""Median filters with the meaning of ``scipy.ndimage``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arrays import axes_of, dtype_of, remembered, resident, result_for, shape_of

_KERNELS = {
    "uint8": _core.median_filter_uint8,
    "uint16": _core.median_filter_uint16,
    "float32": _core.median_filter_float32,
}
#: Values in a window at most: the kernels count in 16 bits.
_LARGEST_WINDOW = 65535


def median_filter(
    input: NDArray[Any],
    size: int | Sequence[int],
    mode: str = "reflect",
    cval: float = 0.0,
    *,
    axes: int | Sequence[int] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Median of the window around each element, with the meaning of ``scipy.ndimage.median_filter``.

    Windows of 3x3, 5x5 and 3x3x3 go through sorting networks, uint8 windows of more than 255 values through sliding
    histograms (Perreault and Hebert 2007, time independent of the size along the last filtered axis), all others
    through bisection on the value.

    Args:
        input: C-contiguous uint8, uint16 or float32 array: an image (H, W), channels (H, W, C) or a batch (N, H, W, C)
            with ``axes`` naming H and W, a volume (D, H, W).
        size: odd sizes of the window in elements, for all filtered axes or one each.
        mode: what lies beyond the border: reflect, constant, nearest, mirror, wrap, or scipy's ``grid-`` names.
        cval: the value beyond the border for ``constant``; one that input's dtype holds.
        axes: the axes to filter; all when None. They may lie at most three axes apart, both ends included.
        out: array of input's shape and dtype to fill; it may not overlap ``input``.

    Returns:
        The medians, of input's shape and dtype: scipy's values exactly. float32 values are ordered by their bits:
        NaN lies above +inf (below -inf with its sign bit set), so that a few in a window pass unseen and a majority
        gives NaN; -0 lies below 0.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: no dimensions, an axis of length 0,
        even or non-positive sizes, a window of more than 65535 values, axes, mode or cval that do not fit.
    """
    input = resident(input)
    shape = shape_of("median_filter", "input", input)
    if not shape or 0 in shape:
        raise ValueError(f"median_filter: input has shape {shape}, expected one or more axes of at least 1")
    kernel = _KERNELS[dtype_of("median_filter", "input", input, *_KERNELS)]
    extents, window = _window(shape, size, axes)
    if mode in ("constant", "grid-constant") and not _holds(input.dtype, cval):
        raise ValueError(f"median_filter: cval has {cval}, expected a value of {input.dtype}")
    y = result_for("median_filter", input, shape, out, input.dtype)
    kernel(input, y, extents, window, mode, cval if "constant" in mode else 0.0)
    return y


@remembered
def _window(
    shape: tuple[int, ...], size: int | Sequence[int], axes: int | Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The array seen as (outer, depth, height, width, channels), and the window over its middle three axes."""
    chosen = axes_of("median_filter", axes, len(shape))
    sizes = list(size) if isinstance(size, Sequence) else [size] * len(chosen)
    if len(sizes) != len(chosen):
        raise ValueError(f"median_filter: size has length {len(sizes)}, expected {len(chosen)}, one for each axis")
    windows = [1] * len(shape)
    for axis, item in zip(chosen, sizes, strict=True):
        try:
            windows[axis] = operator.index(item)
        except TypeError:
            raise ValueError(f"median_filter: size has {item!r}, expected integers") from None
        if windows[axis] < 1 or windows[axis] % 2 == 0:
            raise ValueError(f"median_filter: size has {item}, expected odd numbers of at least 1")
    if math.prod(windows) > _LARGEST_WINDOW:
        raise ValueError(f"median_filter: a window {tuple(windows)} has more than {_LARGEST_WINDOW} values")
    filtered = [axis for axis, n in enumerate(windows) if n > 1] or [len(shape) - 1]
    first, last = filtered[0], filtered[-1]
    if last - first > 2:
        raise ValueError(f"median_filter: axes {chosen} lie too far apart, expected three neighbouring axes at most")
    space = 2 - (last - first)  # axes of length 1 that stand before the filtered ones
    extents = (math.prod(shape[:first]), *[1] * space, *shape[first : last + 1], math.prod(shape[last + 1 :]))
    return extents, (*[1] * space, *windows[first : last + 1])


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "f":
        return True
    return float(value).is_integer() and 0 <= value <= np.iinfo(dtype).max
