"""Elementwise sums and checks on float32 arrays of any shape, and the way from uint8 images to float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import number, speaks_for
from .arrays import Array, result_for, shape_of


def add(a: Array, b: Array, *, relu: bool = False, out: Array | None = None) -> Array:
    """``a + b`` of two arrays of the same shape, not below 0 with ``relu``; ``out`` may be either."""
    shape = shape_of("add", "a", a)
    if shape_of("add", "b", b) != shape:
        raise ValueError(f"add: b has shape {b.shape}, expected {shape}, that of a")
    out = result_for("add", a, shape, out)
    _core.add(a, b, out, bool(relu))
    return out


def accumulate(x: Array, out: Array, *, alpha: float = 1.0) -> Array:
    """``out += alpha x`` on arrays of the same shape; returns ``out``."""
    result_for("accumulate", x, shape_of("accumulate", "x", x), out)
    _core.accumulate(x, out, number("accumulate", "alpha", alpha))
    return out


@speaks_for("scale")
def scale_(x: Array, factor: float) -> Array:
    """``x *= factor``; returns ``x``."""
    _core.scale(x, number("scale_", "factor", factor))
    return x


@speaks_for("fill")
def fill_(x: Array, value: float = 0.0) -> Array:
    """Set every value of ``x``; returns ``x``."""
    _core.fill(x, number("fill_", "value", value))
    return x


def sum_squares(x: Array) -> float:
    """Sum of squares in float64, the same for any number of threads."""
    total: float = _core.sum_squares(x)
    return total


def all_finite(x: Array) -> bool:
    """Whether no value is infinite or NaN."""
    finite: bool = _core.all_finite(x)
    return finite


def normalize(
    images: NDArray[np.uint8],
    mean: Sequence[float] | NDArray[np.floating],
    std: Sequence[float] | NDArray[np.floating],
    *,
    out: Array | None = None,
) -> Array:
    """``(images / 255 - mean) / std`` per channel: uint8 ``(..., C)`` to float32, ``mean`` and ``std`` in 0..1 units.

    ValueError where ``mean`` and ``std`` are not one finite number a channel, or a ``std`` is not above 0.
    """
    shape = shape_of("normalize", "images", images)
    mu, deviation = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mu.shape != shape[-1:] or deviation.shape != shape[-1:]:
        raise ValueError(
            f"normalize: mean has shape {mu.shape} and std {deviation.shape}, expected {shape[-1:]}, one a channel"
        )
    if not (np.isfinite(mu).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
        raise ValueError(f"normalize: mean is {mu} and std {deviation}, expected finite numbers, std above 0")
    out = result_for("normalize", images, shape, out)
    _core.normalize(images, (1 / (255 * deviation)).astype(np.float32), (-mu / deviation).astype(np.float32), out)
    return out
