"""Dropout whose bits come from a counter, not from a state: any part of an array draws the same bits anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import number, whole
from .arrays import Array, result_for, shape_of

_MOST = 2**64 - 1


def _key(op: str, seed: int, offset: int) -> tuple[int, int]:
    return whole(op, "seed", seed, 0, _MOST), whole(op, "offset", offset, 0, _MOST)


def dropout(x: Array, p: float, *, seed: int, offset: int = 0, out: Array | None = None) -> Array:
    """Zero each value with probability ``p`` and scale the others by ``1 / (1 - p)``; ``out`` may be ``x``.

    Whether element ``i`` stays depends on ``seed`` and ``offset + i`` alone (Philox4x32-10, Salmon et al. 2011): ranks
    that hold parts of an array draw the whole array's bits when they pass the position of their part.
    """
    seed, offset = _key("dropout", seed, offset)
    out = result_for("dropout", x, shape_of("dropout", "x", x), out)
    _core.dropout(x, number("dropout", "p", p), seed, offset, out)
    return out


def dropout_backward(dy: Array, p: float, *, seed: int, offset: int = 0, out: Array | None = None) -> Array:
    """Gradient of ``dropout`` with the same ``p``, ``seed`` and ``offset``; ``out`` may be ``dy``."""
    seed, offset = _key("dropout_backward", seed, offset)
    out = result_for("dropout_backward", dy, shape_of("dropout_backward", "dy", dy), out)
    _core.dropout_backward(dy, number("dropout_backward", "p", p), seed, offset, out)
    return out


def dropout_keyed(x: Array, p: float, key: NDArray[np.int64], *, out: Array | None = None) -> Array:
    """``dropout``, or its gradient, with ``key`` int64 (2,), seed and offset, on the device where ``x`` is.

    The key is read when the device comes to it: work that is captured once draws other bits each time.
    """
    out = result_for("dropout_keyed", x, shape_of("dropout_keyed", "x", x), out)
    _core.dropout_keyed(x, p, key, out)
    return out
