"""The recursive Gaussian of Young and van Vliet: its coefficients and its run along one axis."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arrays import empty_beside

#: Poles of the third-order filter for a sigma of about 2 (L. van Vliet, I. Young, P. Verbeek, "Recursive Gaussian
#: derivative filters", ICPR 1998, least squares).
_POLES = np.array([1.41650 + 1.00829j, 1.41650 - 1.00829j, 1.86543])
#: Elements beyond the ends, in sigmas, after which a border that is not constant counts as constant.
_MARGIN = 5.0


@lru_cache(maxsize=256)
def coefficients(sigma: float) -> tuple[tuple[float, ...], int]:
    """The gain, the three feedback weights and the nine numbers of the backward start; elements of the margin."""
    low, high = 0.1, sigma + 1.0
    for _ in range(100):  # bisection for the width with this variance
        middle = (low + high) / 2
        low, high = (low, middle) if _variance(_scaled(middle)) > sigma * sigma else (middle, high)
    poles = _scaled(high)
    weights = -np.poly(1 / poles).real[1:]
    gain = 1.0 - weights.sum()
    # With constant input both passes obey the recursion: the state s = (w[i], w[i - 1], w[i - 2]) becomes A s, and the
    # backward results are the first components of G s, G A s, G A^2 s, where G sums the backward impulse response.
    a = np.array([weights, [1, 0, 0], [0, 1, 0]])
    g = gain * np.linalg.inv(np.eye(3) - weights[0] * a - weights[1] * a @ a - weights[2] * a @ a @ a)
    ending = np.concatenate([g[0], (g @ a)[0], (g @ a @ a)[0]])
    return (float(gain), *map(float, weights), *map(float, ending)), math.ceil(_MARGIN * sigma)


def filter_axis(x: NDArray[Any], axis: int, sigma: float, mode: str, cval: float) -> NDArray[Any]:
    """A float32 or float64 array filtered along one axis."""
    out = empty_beside(x, x.shape, x.dtype)
    numbers, margin = coefficients(sigma)
    extents = (math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
    kernel = _core.recursive_filter if x.dtype == np.float32 else _core.recursive_filter_double
    kernel(x, out, extents, numbers, margin, mode, cval)
    return out


def _scaled(q: float) -> NDArray[np.complex128]:
    """The poles of a filter q times as wide."""
    return np.asarray(np.abs(_POLES) ** (1 / q) * np.exp(1j * np.angle(_POLES) / q))


def _variance(poles: NDArray[np.complex128]) -> float:
    """The variance of the forward and the backward pass together."""
    return float((2 * poles / (poles - 1) ** 2).sum().real)
