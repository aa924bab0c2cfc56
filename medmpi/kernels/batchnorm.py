"""Batch normalisation over all axes but the last, with optional residual addition and ReLU in the same pass.

Batch statistics are float64: each chunk's mean and squared deviations by two passes, merged in a fixed order (Chan,
Golub, LeVeque 1979), so that they do not depend on the number of threads and stay accurate where the mean is large
against the deviation. ``mean`` and ``rstd`` may be given as float32 too.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import number, speaks_for
from .arrays import Array, dtype_of, empty_beside, on_device, result_for, shape_of, zeros_beside

Array64: TypeAlias = NDArray[np.float64]


def _channels(op: str, x: Array) -> int:
    shape = shape_of(op, "x", x)
    if len(shape) < 2:
        raise ValueError(f"{op}: x has {len(shape)} dimensions, expected 2 or more, channels last")
    return shape[-1]


def _wide(array: Array | Array64) -> Array64:
    """Statistics as float64; widening float32 changes no value."""
    if type(array) is np.ndarray and array.dtype == np.float32:
        return array.astype(np.float64)
    return array  # type: ignore[return-value]


def _pair(x: Array, c: int) -> tuple[Array64, Array64]:
    """Two uninitialised arrays (c,) of float64 where x is."""
    if type(x) is np.ndarray or not on_device(x):
        return np.empty(c), np.empty(c)
    return empty_beside(x, (c,), np.float64), empty_beside(x, (c,), np.float64)


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Array64, Array64]:
    """Normalise with the batch's own statistics: ``y = (x - mean) rstd gamma + beta (+ residual)``, then ReLU.

    ``x`` is ``(..., C)`` float32, ``gamma`` and ``beta`` are ``(C,)``; ``residual`` has ``x``'s shape; ``out`` may be
    ``x``. Returns ``y`` and, for backward and the running statistics, float64 ``mean`` and
    ``rstd = 1 / sqrt(biased variance + eps)``. For no rows, mean is 0 and the variance 0.
    """
    c = _channels("batch_norm", x)
    out = result_for("batch_norm", x, x.shape, out)
    mean, rstd = _pair(x, c)
    _core.batch_norm(x, gamma, beta, number("batch_norm", "eps", eps), relu, residual, out, mean, rstd)
    return out, mean, rstd


@speaks_for("batch_norm_apply", rstd="var")
def batch_norm_inference(
    x: Array,
    gamma: Array,
    beta: Array,
    mean: Array | Array64,
    var: Array | Array64,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Normalise with given statistics (running mean and variance), else as ``batch_norm``; ``out`` may be ``x``."""
    eps = number("batch_norm_inference", "eps", eps)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"batch_norm_inference: eps is {eps}, expected a finite number >= 0")
    if on_device(x):
        mean, rstd = batch_norm_from_running(mean, var, eps=eps)
    else:
        dtype_of("batch_norm_inference", "var", var, "float32", "float64")
        rstd = 1.0 / np.sqrt(np.asarray(var, np.float64) + eps)
    return batch_norm_apply(x, gamma, beta, mean, rstd, relu, residual, out)


def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array,
    mean: Array | Array64,
    rstd: Array | Array64,
    *,
    y: Array | None = None,
    beta: Array | None = None,
    dgamma: Array | None = None,
    dbeta: Array | None = None,
    dresidual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of ``batch_norm``: ``dx, dgamma, dbeta``.

    ``dgamma`` and ``dbeta`` are added to where given. For a fused ReLU, ``y``, the forward result, passes ``dy`` only
    where ``y > 0``; where there was no residual, ``beta`` in its place computes the same mask from ``x``, which reads
    one array less. ``dresidual`` receives that masked ``dy``. ``out`` may be ``dy``.
    """
    c = _channels("batch_norm_backward", x)
    out = result_for("batch_norm_backward", x, x.shape, out)
    dgamma = zeros_beside(x, (c,)) if dgamma is None else dgamma
    dbeta = zeros_beside(x, (c,)) if dbeta is None else dbeta
    _core.batch_norm_backward(
        dy, x, gamma, beta, _wide(mean), _wide(rstd), y, dgamma, dbeta, dresidual, out, *_pair(x, c)
    )
    return out, dgamma, dbeta


def batch_norm_statistics(x: Array) -> tuple[int, Array64, Array64]:
    """``count, mean, m2`` of each channel: rows, float64 mean and sum of squared deviations from it.

    Two such triples of disjoint rows merge by Chan's formula: the piece of ``batch_norm`` that ranks can share.
    """
    c = _channels("batch_norm_statistics", x)
    mean, m2 = _pair(x, c)
    _core.batch_norm_statistics(x, mean, m2)
    return math.prod(x.shape) // c if c else 0, mean, m2


def batch_norm_apply(
    x: Array,
    gamma: Array,
    beta: Array,
    mean: Array | Array64,
    rstd: Array | Array64,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """``(x - mean) rstd gamma + beta (+ residual)``, then ReLU if asked; ``out`` may be ``x``."""
    out = result_for("batch_norm_apply", x, shape_of("batch_norm_apply", "x", x), out)
    _core.batch_norm_apply(x, gamma, beta, _wide(mean), _wide(rstd), relu, residual, out)
    return out


def batch_norm_backward_reduce(
    dy: Array,
    x: Array,
    mean: Array | Array64,
    rstd: Array | Array64,
    y: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
) -> tuple[Array64, Array64]:
    """``sum_dy`` and ``sum_dy_xhat`` per channel in float64, over the rows at hand.

    ``y``, or ``beta`` with ``gamma``, masks ``dy`` as in ``batch_norm_backward``.
    """
    c = _channels("batch_norm_backward_reduce", x)
    sum_dy, sum_dy_xhat = _pair(x, c)
    _core.batch_norm_backward_reduce(dy, x, gamma, beta, _wide(mean), _wide(rstd), y, sum_dy, sum_dy_xhat)
    return sum_dy, sum_dy_xhat


def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    gamma: Array,
    mean: Array | Array64,
    rstd: Array | Array64,
    sum_dy: Array64,
    sum_dy_xhat: Array64,
    count: float,
    y: Array | None = None,
    beta: Array | None = None,
    dresidual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """``dx`` from the sums over all ``count`` rows that the statistics were taken of; ``out`` may be ``dy``."""
    count = number("batch_norm_backward_apply", "count", count)
    out = result_for("batch_norm_backward_apply", x, shape_of("batch_norm_backward_apply", "x", x), out)
    _core.batch_norm_backward_apply(
        dy, x, gamma, beta, _wide(mean), _wide(rstd), sum_dy, sum_dy_xhat, count, y, dresidual, out
    )
    return out


def batch_norm_deviation(m2: Array64, count: float, *, eps: float) -> Array64:
    """``rstd = 1 / sqrt(m2 / count + eps)`` of the sums of squared deviations of ``count`` rows, for ``apply``."""
    op = "batch_norm_deviation"
    count, eps = number(op, "count", count), number(op, "eps", eps)
    rstd = result_for(op, m2, shape_of(op, "m2", m2), None, np.float64)
    _core.batch_norm_deviation(m2, count, eps, rstd)
    return rstd


@speaks_for("batch_norm_inference")
def batch_norm_from_running(mean: Array | Array64, var: Array | Array64, *, eps: float) -> tuple[Array64, Array64]:
    """float64 ``mean`` and ``rstd = 1 / sqrt(var + eps)`` of float32 running statistics."""
    op = "batch_norm_from_running"
    eps, shape = number(op, "eps", eps), shape_of(op, "mean", mean)
    wide, rstd = (empty_beside(mean, shape, np.float64) for _ in range(2))
    _core.batch_norm_from_running(mean, var, eps, wide, rstd)
    return wide, rstd


def batch_norm_track(
    mean: Array64, m2: Array64, count: float, *, rate: float, running_mean: Array, running_var: Array
) -> None:
    """Move running statistics by ``rate`` towards a batch's mean and its unbiased variance ``m2 / (count - 1)``."""
    op = "batch_norm_track"
    count, rate = number(op, "count", count), number(op, "rate", rate)
    _core.batch_norm_track(mean, m2, count, rate, running_mean, running_var)


def batch_norm_add_sums(sums: Array64, out: Array) -> None:
    """``out += sums``, float64 sums of ``batch_norm_backward_reduce`` rounded to the gradient's float32."""
    _core.batch_norm_add_sums(sums, out)
