"""2-D convolution, its gradients, transposed convolution and true convolution.

Activations are ``(N, H, W, C)``, filters ``(R, S, C / groups, K)``, all float32 and C-contiguous. ``stride`` and
``dilation`` are an int or a pair (height, width); ``padding`` an int, a pair or ``((top, bottom), (left, right))``.
Gradients of parameters are added to ``out`` where it is given; everything else overwrites ``out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import Padding, Pair, four, margins, pair, speaks_for, whole
from .arrays import Array, on_device, remembered, result_for, shape_of, to_device, to_host, zeros_beside

WeightCache = _core.WeightCache
Array64: TypeAlias = NDArray[np.float64]

_Window: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]


@remembered
def _window(op: str, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> _Window:
    top, bottom, left, right = margins(op, padding)
    return (
        *pair(op, "stride", stride, 1),
        *pair(op, "dilation", dilation, 1),
        *(top, bottom, left, right),
        whole(op, "groups", groups, 1),
    )


def _sizes(op: str, name: str, array: Any) -> tuple[int, int, int, int]:
    shape = shape_of(op, name, array)
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected 4")
    return shape


@remembered
def _output_shape(
    op: str, x: tuple[int, int, int, int], weight: tuple[int, int, int, int], window: _Window
) -> tuple[int, int, int, int]:
    sh, sw, dh, dw, top, bottom, left, right, _ = window
    (n, h, w, _), (r, s, _, k) = x, weight
    rows, columns = h + top + bottom - dh * (r - 1) - 1, w + left + right - dw * (s - 1) - 1
    if rows < 0 or columns < 0:
        raise ValueError(
            f"{op}: x is {h} x {w}, with padding {h + top + bottom} x {w + left + right}, "
            f"expected at least {dh * (r - 1) + 1} x {dw * (s - 1) + 1} for this filter"
        )
    return n, rows // sh + 1, columns // sw + 1, k


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Array | None = None,
    relu: bool = False,
    moments: tuple[Array64, Array64] | None = None,
    algo: str = "auto",
    cache: WeightCache | None = None,
    out: Array | None = None,
) -> Array:
    """Cross-correlation of ``x (N, H, W, C)`` with ``weight (R, S, C/groups, K)``, as ``torch.nn.functional.conv2d``.

    ``bias (K,)`` and ``residual``, of the result's shape, are added, then, with ``relu``, negative results become 0.
    ``moments``, two float64 arrays (K,), receive each channel's mean and sum of squared deviations from it over the
    result, as ``batch_norm_statistics`` computes them. All of this is done while the result is in cache.
    ``algo``: ``"direct"``, ``"winograd"`` (3 x 3 and 5 x 5 filters of stride 1; errors of 1e-5 of the largest result,
    about half the time) or ``"auto"``, which chooses by the layer's sizes, never by the batch's. ``cache``, one for
    each layer, keeps the weights as the kernel wants them for the next call: only for weights that do not change (or
    call its ``clear()`` when they do).
    Raises TypeError for a wrong dtype or layout, ValueError for sizes that do not fit.
    """
    window = _window("conv2d", stride, padding, dilation, groups)
    if out is None:
        shape = _output_shape("conv2d", _sizes("conv2d", "x", x), _sizes("conv2d", "weight", weight), window)
        out = result_for("conv2d", x, shape, None)
    mean, m2 = moments or (None, None)
    _core.conv2d(x, weight, bias, residual, mean, m2, out, window, str(algo), bool(relu), cache)
    return out


def conv2d_backward_data(
    dy: Array,
    weight: Array,
    *,
    x_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
    add: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of :func:`conv2d` for ``x``, whose shape ``x_shape`` says, from the output's gradient ``dy``.

    ``add``, of that shape, is added to it, in the same pass where the kernel can; ``out`` may be the same array.
    """
    op = "conv2d_backward_data"
    window = _window(op, stride, padding, dilation, groups)
    shape = four(op, "x_shape", x_shape)
    if out is None:
        out = result_for(op, dy, shape, None)
    if add is None:
        _core.conv2d_backward_data(op, dy, weight, None, out, shape, window, str(algo))
    elif not _core.conv2d_backward_data_onto(op, dy, weight, add, out, shape, window, str(algo)):
        dx = result_for(op, dy, shape, None) if out is add else out
        _core.conv2d_backward_data(op, dy, weight, None, dx, shape, window, str(algo))
        _core.add(dx, add, out, False)
    return out


def conv2d_backward_weight(
    dy: Array,
    x: Array,
    *,
    weight_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of :func:`conv2d` for the weight, added to ``out``; without ``out`` a new array.

    ``algo`` as for :func:`conv2d`; the errors of ``"winograd"``, here F(3x3, 4x4), are 2e-6 of the largest value.
    """
    op = "conv2d_backward_weight"
    window = _window(op, stride, padding, dilation, groups)
    shape = four(op, "weight_shape", weight_shape)
    if out is None:
        out = zeros_beside(dy, shape)
    _core.conv2d_backward_weight(op, dy, x, out, shape, window, str(algo))
    return out


def sum_channels(dy: Array, *, out: Array | None = None) -> Array:
    """Sum over all but the last axis of ``dy (..., C)``, added to ``out (C,)``; without ``out`` a new array.

    The order of the sum is fixed by the shape, not by the number of threads.
    """
    shape = shape_of("sum_channels", "dy", dy)
    if not shape:
        raise ValueError("sum_channels: dy has 0 dimensions, expected 1 or more")
    if out is None:
        out = zeros_beside(dy, shape[-1:])
    _core.sum_channels(dy, out, shape[-1])
    return out


@speaks_for("sum_channels")
def conv2d_backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """Gradient of :func:`conv2d` for the bias, added to ``out (K,)``; without ``out`` a new array."""
    return sum_channels(dy, out=out)


@remembered
def _transposed(
    op: str,
    x: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    window: _Window,
    output_padding: Pair,
) -> tuple[tuple[int, int, int, int], _Window]:
    """Output shape, and the window of the convolution whose gradient the transposed convolution is."""
    sh, sw, dh, dw, top, bottom, left, right, groups = window
    more_h, more_w = pair(op, "output_padding", output_padding, 0)
    if more_h >= max(sh, dh) or more_w >= max(sw, dw):
        raise ValueError(
            f"{op}: output_padding is {(more_h, more_w)}, expected less than stride {(sh, sw)} or dilation {(dh, dw)}"
        )
    (n, h, w, _), (r, s, group_k, _) = x, weight
    out_h = (h - 1) * sh + dh * (r - 1) + 1 + more_h - top - bottom
    out_w = (w - 1) * sw + dw * (s - 1) + 1 + more_w - left - right
    if h < 1 or w < 1 or out_h < 1 or out_w < 1:
        raise ValueError(f"{op}: x is {h} x {w} and gives {out_h} x {out_w}, expected sizes of 1 or more")
    # output padding is rows and columns that no window of that convolution reaches
    return (n, out_h, out_w, group_k * groups), (sh, sw, dh, dw, top, bottom - more_h, left, right - more_w, groups)


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
    out: Array | None = None,
) -> Array:
    """Transposed convolution of ``x (N, H, W, C)`` with ``weight (R, S, K/groups, C)``, as torch.nn.functional's.

    The result has K channels; ``bias (K,)`` is added.
    """
    op = "conv_transpose2d"
    window = _window(op, stride, padding, dilation, groups)
    shape, window = _transposed(op, _sizes(op, "x", x), _sizes(op, "weight", weight), window, output_padding)
    if out is None:
        out = result_for(op, x, shape, None)
    _core.conv2d_backward_data(op, x, weight, bias, out, shape, window, str(algo))
    return out


@speaks_for("conv2d", x="dy")
def conv_transpose2d_backward_data(
    dy: Array,
    weight: Array,
    *,
    x_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of :func:`conv_transpose2d` for ``x``."""
    op = "conv_transpose2d_backward_data"
    window = _window(op, stride, padding, dilation, groups)
    shape = four(op, "x_shape", x_shape)
    expected, window = _transposed(op, shape, _sizes(op, "weight", weight), window, output_padding)
    if _sizes(op, "dy", dy) != expected:
        raise ValueError(f"{op}: dy has shape {shape_of(op, 'dy', dy)}, expected {expected}")
    if out is None:
        out = result_for(op, dy, shape, None)
    _core.conv2d(dy, weight, None, None, None, None, out, window, str(algo), False, None)
    return out


def conv_transpose2d_backward_weight(
    dy: Array,
    x: Array,
    *,
    weight_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of :func:`conv_transpose2d` for the weight, added to ``out``; without ``out`` a new array."""
    op = "conv_transpose2d_backward_weight"
    window = _window(op, stride, padding, dilation, groups)
    shape = four(op, "weight_shape", weight_shape)
    expected, window = _transposed(op, _sizes(op, "x", x), shape, window, output_padding)
    if _sizes(op, "dy", dy) != expected:
        raise ValueError(f"{op}: dy has shape {shape_of(op, 'dy', dy)}, expected {expected}")
    if out is None:
        out = zeros_beside(dy, shape)
    _core.conv2d_backward_weight(op, x, dy, out, shape, window, str(algo))
    return out


@speaks_for("conv2d")
def convolve2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """True convolution (S0 eq. 4): as :func:`conv2d` with the filter turned by 180 degrees.

    One channel, stride 1 and ``padding`` R - 1, S - 1 give ``scipy.signal.convolve2d(x, weight)``.
    """
    _sizes("convolve2d", "weight", weight)
    if on_device(weight):
        turned = to_device(np.ascontiguousarray(to_host(weight)[::-1, ::-1]))
    else:
        turned = np.ascontiguousarray(weight[::-1, ::-1])
    return conv2d(x, turned, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, out=out)
