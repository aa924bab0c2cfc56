"""Convolution and linear layers on a CUDA device, real or emulated: equal to the CPU's, in every precision."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.skipif(not kernels.devices(), reason=f"no CUDA device: {kernels.missing_device()}")

# largest difference from the CPU's result over the latter's largest value
BOUNDS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}

# n, h, w, c, r, s, k, stride, padding, dilation, groups: pieces of four and single values, tails of every tile
# dimension, lattices of several sizes and without taps, depths that are split
CASES = [
    (2, 9, 7, 32, 3, 3, 72, 1, 1, 1, 1),
    (1, 7, 7, 160, 3, 3, 32, 1, 1, 1, 1),
    (2, 11, 8, 16, 3, 3, 24, 2, 1, 1, 1),
    (1, 11, 9, 8, 1, 1, 40, 2, 0, 1, 1),
    (1, 13, 13, 8, 3, 3, 8, 3, ((0, 2), (2, 1)), 1, 1),
    (1, 23, 14, 12, 3, 3, 52, (2, 3), ((1, 0), (0, 2)), 1, 1),
    (1, 10, 11, 24, 4, 5, 16, 3, 1, 1, 1),
    (1, 17, 15, 3, 7, 7, 20, 2, 3, 1, 1),
    (1, 12, 9, 5, 3, 3, 7, 1, 1, 2, 1),
    (1, 6, 5, 17, 3, 2, 33, (2, 1), ((1, 0), (0, 2)), (1, 2), 1),
    (1, 9, 8, 20, 2, 3, 3, 1, 0, 1, 1),
    (1, 9, 9, 8, 3, 3, 8, 2, 2, 2, 1),
    (1, 8, 9, 48, 5, 5, 24, (2, 1), ((2, 2), (0, 3)), 1, 2),
    (2, 6, 7, 6, 3, 3, 9, 1, 2, 2, 3),
    (2, 9, 11, 40, 3, 3, 40, 1, 1, 1, 40),
    (1, 9, 12, 36, 3, 3, 36, 2, 1, 1, 36),
    (1, 8, 7, 8, 5, 5, 8, 1, 2, 1, 8),
    (1, 9, 7, 8, 5, 5, 8, 2, 1, 1, 8),
    (2, 6, 5, 7, 3, 3, 14, 1, 1, 1, 7),
    (1, 4, 6, 8, 3, 3, 8, 1, 0, 1, 8),
    (1, 2, 2, 4, 5, 5, 4, 1, 4, 1, 1),
    (0, 8, 8, 16, 3, 3, 16, 1, 1, 1, 1),
]


@pytest.fixture(params=list(BOUNDS))
def precision(request):
    before = kernels.precision()
    kernels.set_precision(request.param)
    yield request.param
    kernels.set_precision(before)


def close(got, want, bound):
    got = kernels.to_host(got)
    assert got.shape == want.shape
    if want.size:
        assert np.abs(got - want).max() <= bound * np.abs(want).max()


def device(*arrays):
    return [kernels.to_device(array) for array in arrays]


def poison(shape):
    return kernels.to_device(np.full(shape, np.nan, np.float32))


def check(case, bound, make):
    n, h, w, c, r, s, k, stride, padding, dilation, groups = case
    rng = np.random.default_rng(sum(case[:7]))
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x, weight, bias = make(rng, n, h, w, c), make(rng, r, s, c // groups, k), make(rng, k)
    plain = kernels.conv2d(x, weight, bias, **window, algo="direct")
    residual, dy = make(rng, *plain.shape), make(rng, *plain.shape)
    dx, dw, db, dbias, dresidual = device(x, weight, dy, bias, residual)
    close(kernels.conv2d(dx, dw, dbias, **window, out=poison(plain.shape)), plain, bound)

    moments = tuple(kernels.to_device(np.full(k, np.nan)) for _ in range(2))
    y = kernels.conv2d(dx, dw, dbias, **window, residual=dresidual, relu=True, moments=moments, out=poison(plain.shape))
    close(y, np.maximum(plain + residual, 0), bound)
    if plain.size:
        values = kernels.to_host(y).reshape(-1, k).astype(np.float64)
        mean, m2 = (kernels.to_host(m) for m in moments)
        np.testing.assert_allclose(mean, values.mean(0), atol=1e-7 * np.abs(values).max())
        np.testing.assert_allclose(
            m2, values.var(0) * len(values), atol=1e-6 * max(1.0, values.var(0).max()), rtol=1e-6
        )

    want = kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **window, algo="direct")
    close(kernels.conv2d_backward_data(db, dw, x_shape=x.shape, **window, out=poison(x.shape)), want, bound)

    start = make(rng, *weight.shape)
    want = kernels.conv2d_backward_weight(dy, x, weight_shape=weight.shape, **window, algo="direct", out=start.copy())
    into = kernels.to_device(start)
    kernels.conv2d_backward_weight(db, dx, weight_shape=weight.shape, **window, out=into)
    close(into, want, bound)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reals(case, precision):
    check(case, BOUNDS[precision], lambda rng, *shape: rng.standard_normal(shape, np.float32))


@pytest.mark.parametrize("case", CASES[:14], ids=str)
def test_integers_are_exact(case):
    check(case, 0.0, lambda rng, *shape: rng.integers(-4, 5, shape).astype(np.float32))


@pytest.mark.parametrize("tile", ["small", "medium", "large"])
def test_every_tile(tile, precision, monkeypatch):
    monkeypatch.setenv("MEDMPI_CUDA_TILE", tile)
    for case in (CASES[0], CASES[2], CASES[12]):
        check(case, BOUNDS[precision], lambda rng, *shape: rng.standard_normal(shape, np.float32))


def test_transposed_with_bias():
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in ((1, 5, 6, 12), (2, 2, 8, 12), (8,)))
    want = kernels.conv_transpose2d(x, weight, bias, stride=2)
    close(kernels.conv_transpose2d(*device(x, weight, bias), stride=2), want, 1e-5)


@pytest.mark.parametrize(("m", "c", "k"), [(1, 40, 10), (5, 7, 3), (70, 96, 130), (0, 4, 4)])
def test_linear(m, c, k, precision):
    rng = np.random.default_rng(m)
    x, weight, bias, dy = (rng.standard_normal(s, np.float32) for s in ((m, c), (c, k), (k,), (m, k)))
    dx, dw, dbias, ddy = device(x, weight, bias, dy)
    bound = BOUNDS[precision]
    close(kernels.linear(dx, dw, dbias), kernels.linear(x, weight, bias), bound)
    close(kernels.linear_backward_data(ddy, dw), kernels.linear_backward_data(dy, weight), bound)
    close(kernels.linear_backward_weight(ddy, dx), kernels.linear_backward_weight(dy, x), bound)
    close(kernels.linear_backward_bias(ddy), kernels.linear_backward_bias(dy), 1e-6)


def test_moments_of_a_small_spread():
    """A mean of 1000 with deviations of 1e-2: float32 sums of squares would lose them all."""
    rng = np.random.default_rng(0)
    x = (1000 + 0.01 * rng.standard_normal((1, 20, 20, 4))).astype(np.float32)
    weight = np.eye(4, dtype=np.float32)[None, None]
    mean, m2 = (kernels.to_device(np.zeros(4)) for _ in range(2))
    y = kernels.to_host(kernels.conv2d(*device(x, weight), moments=(mean, m2))).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(kernels.to_host(mean), y.mean(0), rtol=1e-9)
    np.testing.assert_allclose(kernels.to_host(m2), y.var(0) * len(y), rtol=1e-4)


def test_values_that_are_not_finite_show():
    x = np.array([[np.inf, 1.0, 2.0, 3.0], [1.0, np.nan, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    got = kernels.to_host(kernels.linear(*device(x, np.ones((4, 4), np.float32))))
    assert not np.isfinite(got[:2]).any()
    np.testing.assert_array_equal(got[2], 4.0)
