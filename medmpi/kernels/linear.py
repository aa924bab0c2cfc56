"""The fully connected layer and its gradients."""

from __future__ import annotations

from . import _core
from .arrays import Array, empty_beside, shape_of, zeros_beside


def _size(op: str, name: str, array: Array, axis: int) -> int:
    """One extent of a matrix argument, before its result is allocated; ValueError where it is not a matrix."""
    shape = shape_of(op, name, array)
    if len(shape) != 2:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected 2")
    return shape[axis]


def linear(x: Array, weight: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """``x @ weight + bias`` for float32 x (M, C), weight (C, K), bias (K,) or None; gives (M, K).

    ValueError where the sizes do not fit or ``out`` overlaps an input, TypeError for another dtype or layout.
    """
    if out is None:
        out = empty_beside(x, (_size("linear", "x", x, 0), _size("linear", "weight", weight, 1)))
    _core.linear(x, weight, bias, out)
    return out


def linear_backward_data(dy: Array, weight: Array, *, out: Array | None = None) -> Array:
    """The gradient of x: ``dy @ weight.T`` for dy (M, K), weight (C, K); gives (M, C), written over ``out``."""
    op = "linear_backward_data"
    if out is None:
        out = empty_beside(dy, (_size(op, "dy", dy, 0), _size(op, "weight", weight, 0)))
    _core.linear_backward_data(dy, weight, out)
    return out


def linear_backward_weight(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """The gradient of weight: ``x.T @ dy`` for dy (M, K), x (M, C); gives (C, K). Added to ``out`` where given."""
    op = "linear_backward_weight"
    if out is None:
        out = zeros_beside(dy, (_size(op, "x", x, 1), _size(op, "dy", dy, 1)))
    _core.linear_backward_weight(dy, x, out)
    return out


def linear_backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """The gradient of bias: the sum of dy (M, K) over its rows; gives (K,). Added to ``out`` where given."""
    if out is None:
        out = zeros_beside(dy, (_size("linear_backward_bias", "dy", dy, 1),))
    _core.linear_backward_bias(dy, out)
    return out
