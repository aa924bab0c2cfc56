"""Activations."""

from __future__ import annotations

from . import _core
from .arrays import Array, empty_beside, shape_of


def relu(x: Array, *, out: Array | None = None) -> Array:
    """``max(x, 0)`` (S0 eq. 5) of a float32 array of any shape; ``out`` may be ``x``. NaN stays NaN."""
    if out is None:
        out = empty_beside(x, shape_of("relu", "x", x))
    _core.relu(x, out)
    return out


def relu_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """``dy`` where the forward result ``y`` is positive, else 0; ``out`` may be ``dy``."""
    if out is None:
        out = empty_beside(dy, shape_of("relu_backward", "dy", dy))
    _core.relu_backward(dy, y, out)
    return out
