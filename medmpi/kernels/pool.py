"""Max and average pooling of (N, H, W, C) images, by torch's rules for sizes, padding and divisors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import Padding, Pair, four, margins, pair
from .arrays import Array, dtype_of, empty_beside, remembered, result_for, shape_of

Sizes: TypeAlias = tuple[int, int]

_UINT8, _INT32 = np.dtype(np.uint8), np.dtype(np.int32)


class MaxPoolIndices(NamedTuple):
    """Where each maximum of a ``max_pool2d`` was, for its backward: ``place`` holds its position in its window
    (row by row; uint8, or int32 for windows of more than 255 values), the rest says which windows they are."""

    place: NDArray[Any]
    kernel_size: Sizes
    stride: Sizes
    padding: Sizes  # top and left
    dilation: Sizes


def _image(op: str, name: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected 4")
    return shape[0], shape[1], shape[2], shape[3]


@remembered
def _windows(
    op: str, kernel_size: Pair, stride: Pair | None, padding: Padding, dilation: Pair
) -> tuple[Sizes, Sizes, tuple[Sizes, Sizes], Sizes]:
    kernel, spread = pair(op, "kernel_size", kernel_size, 1), pair(op, "dilation", dilation, 1)
    top, bottom, left, right = margins(op, padding)
    pad = (top, bottom), (left, right)
    for side, k, d in zip(pad, kernel, spread, strict=True):
        if max(side) > d * (k - 1):
            raise ValueError(f"{op}: padding is {pad}, expected less than the window of {d * (k - 1) + 1}")
    return kernel, kernel if stride is None else pair(op, "stride", stride, 1), pad, spread


@remembered
def _length(op: str, size: int, kernel: int, stride: int, pad: Sizes, dilation: int, ceil_mode: bool) -> int:
    """Windows along an axis; with ``ceil_mode`` a last one may pass the end, but starts inside image or left pad."""
    room = size + sum(pad) - dilation * (kernel - 1) - 1
    length = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (length - 1) * stride >= size + pad[0]:
        length -= 1
    if length < 1:
        raise ValueError(
            f"{op}: x has a side of {size}, padded {size + sum(pad)}, expected at least the window's "
            f"{dilation * (kernel - 1) + 1}" + (f" less {stride - 1} that ceil_mode lets it pass" if ceil_mode else "")
        )
    return length


def max_pool2d(
    x: Array,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    out: Array | None = None,
) -> tuple[Array, MaxPoolIndices]:
    """The maximum of each window of ``x`` (N, H, W, C), and where it was, for ``max_pool2d_backward``.

    As ``torch.nn.functional.max_pool2d``: ``stride`` defaults to ``kernel_size``, padding never wins, the first of
    equal values does, and NaN wins over numbers. ``padding`` is an int, a pair or ((top, bottom), (left, right)).
    ValueError where a window could lie wholly in the padding.
    """
    op = "max_pool2d"
    shape, kernel, steps, start, spread, wide = _max_windows(
        op, shape_of(op, "x", x), kernel_size, stride, padding, dilation, ceil_mode
    )
    out = result_for(op, x, shape, out)
    place = empty_beside(x, shape, _INT32 if wide else _UINT8)
    _core.max_pool2d(x, kernel, steps, start, spread, shape[1:3], wide, out, place)
    return out, MaxPoolIndices(place, kernel, steps, start, spread)


@remembered
def _max_windows(
    op: str,
    shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[tuple[int, int, int, int], Sizes, Sizes, Sizes, Sizes, bool]:
    """Shape of the result, window, stride, padding before, dilation, and whether places take more than a byte."""
    n, h, w, c = _image(op, "x", shape)
    kernel, steps, pad, spread = _windows(op, kernel_size, stride, padding, dilation)
    p, q = (_length(op, *sizes, ceil_mode) for sizes in zip((h, w), kernel, steps, pad, spread, strict=True))
    return (n, p, q, c), kernel, steps, (pad[0][0], pad[1][0]), spread, kernel[0] * kernel[1] > 255


def max_pool2d_backward(
    dy: Array, indices: MaxPoolIndices, *, x_shape: Sequence[int], out: Array | None = None
) -> Array:
    """Gradient of ``max_pool2d``: each value of ``dy`` goes to its window's maximum; ``x_shape`` is (N, H, W, C)."""
    op = "max_pool2d_backward"
    shape = four(op, "x_shape", x_shape)
    if not isinstance(indices, MaxPoolIndices):
        raise TypeError(f"{op}: indices is a {type(indices).__name__}, expected the MaxPoolIndices of max_pool2d")
    grad = _image(op, "dy", shape_of(op, "dy", dy))
    if (grad[0], grad[3]) != (shape[0], shape[3]):
        raise ValueError(f"{op}: dy has shape {grad}, expected the images and channels of x_shape {shape}")
    out = result_for(op, dy, shape, out)
    _core.max_pool2d_backward(
        dy, indices.place, shape, indices.kernel_size, indices.stride, indices.padding, indices.dilation,
        indices.place.dtype == np.int32, out,
    )  # fmt: skip
    return out


@lru_cache(maxsize=256)
def _sliding(
    op: str, size: int, kernel: int, stride: int, pad: Sizes, ceil_mode: bool, count_pad: bool
) -> NDArray[np.int32]:
    """Begin, end and divisor of each window along an axis."""
    start = np.arange(_length(op, size, kernel, stride, pad, 1, ceil_mode)) * stride - pad[0]
    stop = np.minimum(start + kernel, size + pad[1])
    begin, end = np.maximum(start, 0), np.minimum(stop, size)
    return np.stack([begin, end, stop - start if count_pad else end - begin]).astype(np.int32)


@lru_cache(maxsize=256)
def _even(size: int, out: int) -> NDArray[np.int32]:
    """Windows that share an axis out evenly, overlapping where it does not divide."""
    i = np.arange(out)
    begin, end = i * size // out, -(-(i + 1) * size // out)
    return np.stack([begin, end, end - begin]).astype(np.int32)


def _average_windows(
    op: str, h: int, w: int, kernel_size: Pair, stride: Pair | None, padding: Padding, ceil_mode: bool, count_pad: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    kernel, steps, pad, _ = _windows(op, kernel_size, stride, padding, 1)
    return (
        _sliding(op, h, kernel[0], steps[0], pad[0], ceil_mode, count_pad),
        _sliding(op, w, kernel[1], steps[1], pad[1], ceil_mode, count_pad),
    )


def _average(op: str, x: Array, rows: NDArray[np.int32], columns: NDArray[np.int32], out: Array | None) -> Array:
    out = result_for(op, x, (x.shape[0], rows.shape[1], columns.shape[1], x.shape[3]), out)
    _core.average_pool(op, x, rows, columns, out)
    return out


def _average_backward(
    op: str, dy: Array, shape: tuple[int, ...], rows: NDArray[np.int32], columns: NDArray[np.int32], out: Array | None
) -> Array:
    out = result_for(op, dy, shape, out)
    _core.average_pool_backward(op, dy, shape, rows, columns, out)
    return out


def avg_pool2d(
    x: Array,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    out: Array | None = None,
) -> Array:
    """The mean of each window of ``x`` (N, H, W, C), as ``torch.nn.functional.avg_pool2d``."""
    op = "avg_pool2d"
    _, h, w, _ = _image(op, "x", shape_of(op, "x", x))
    windows = _average_windows(op, h, w, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _average(op, x, *windows, out)


def avg_pool2d_backward(
    dy: Array,
    kernel_size: Pair,
    *,
    x_shape: Sequence[int],
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    out: Array | None = None,
) -> Array:
    """Gradient of ``avg_pool2d`` with the same windows, for an input of ``x_shape``."""
    op = "avg_pool2d_backward"
    shape = four(op, "x_shape", x_shape)
    windows = _average_windows(op, *shape[1:3], kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _average_backward(op, dy, shape, *windows, out)


def adaptive_avg_pool2d(x: Array, output_size: Pair, *, out: Array | None = None) -> Array:
    """Means over ``output_size`` windows that share the image out evenly, as torch's function of that name."""
    op = "adaptive_avg_pool2d"
    _, h, w, _ = _image(op, "x", shape_of(op, "x", x))
    p, q = pair(op, "output_size", output_size, 1)
    return _average(op, x, _even(h, p), _even(w, q), out)


def adaptive_avg_pool2d_backward(dy: Array, *, x_shape: Sequence[int], out: Array | None = None) -> Array:
    """Gradient of ``adaptive_avg_pool2d``, whose output size is ``dy``'s."""
    op = "adaptive_avg_pool2d_backward"
    shape = four(op, "x_shape", x_shape)
    _, p, q, _ = _image(op, "dy", shape_of(op, "dy", dy))
    return _average_backward(op, dy, shape, _even(shape[1], p), _even(shape[2], q), out)


def global_avg_pool2d(x: Array, *, out: Array | None = None) -> Array:
    """The mean of each image and channel: ``(N, H, W, C)`` to ``(N, C)``."""
    op = "global_avg_pool2d"
    n, h, w, c = _image(op, "x", shape_of(op, "x", x))
    out = result_for(op, x, (n, c), out)
    dtype_of(op, "out", out, "float32")
    _core.average_pool(op, x, _even(h, 1), _even(w, 1), out.reshape(n, 1, 1, c))
    return out


def global_avg_pool2d_backward(dy: Array, *, x_shape: Sequence[int], out: Array | None = None) -> Array:
    """Gradient of ``global_avg_pool2d``: ``dy`` (N, C) spread over ``x_shape`` (N, H, W, C)."""
    op = "global_avg_pool2d_backward"
    shape = four(op, "x_shape", x_shape)
    if shape_of(op, "dy", dy) != (shape[0], shape[3]):
        raise ValueError(f"{op}: dy has shape {dy.shape}, expected {(shape[0], shape[3])}")
    dtype_of(op, "dy", dy, "float32")
    spread = dy.reshape(shape[0], 1, 1, shape[3])
    return _average_backward(op, spread, shape, _even(shape[1], 1), _even(shape[2], 1), out)
