"""What a convolution does to its outputs while they are in cache equals doing it afterwards, for every algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from test_conv2d import CASES

from medmpi import kernels
from tests.kernels.convolutions import integers, poison
from tests.kernels.staged import ON_HOST_BACKENDS

pytestmark = ON_HOST_BACKENDS

MORE = [  # several bands of rows, bands that end within an image, tiles that reach over the edge
    (2, 70, 37, 16, 3, 3, 48, 1, 1, 1, 1),
    (3, 61, 66, 32, 3, 3, 40, 2, 1, 1, 1),
    (2, 150, 40, 3, 3, 3, 32, 1, 1, 1, 1),
    (2, 90, 50, 24, 1, 1, 40, 1, 0, 1, 1),
    (2, 90, 33, 20, 3, 3, 20, 1, 1, 1, 20),
    (2, 91, 33, 20, 3, 3, 20, 2, 1, 1, 20),
    (2, 60, 41, 16, 5, 5, 36, 1, 2, 1, 2),
    (1, 5, 6, 8, 3, 3, 1100, 1, 1, 1, 1),
]


def algorithms(case):
    *_, r, s, _, stride, _, dilation, groups = case
    fits = (r, s, stride, dilation, groups) in ((3, 3, 1, 1, 1), (5, 5, 1, 1, 1))
    return ("auto", "direct", "winograd") if fits else ("auto", "direct")


def same_moments(moments, y):
    """Sums of the same values in another order, in float64."""
    _, mean, m2 = kernels.batch_norm_statistics(y)
    largest = float(np.abs(y).max(initial=1))
    np.testing.assert_allclose(moments[0], mean, rtol=0, atol=1e-13 * largest)
    np.testing.assert_allclose(moments[1], m2, rtol=1e-12, atol=1e-12 * largest**2)


@pytest.mark.parametrize("case", CASES + MORE, ids=str)
def test_residual_relu_and_moments(rng, case):
    n, h, w, c, r, s, k, stride, padding, dilation, groups = case
    x, weight = integers(rng, n, h, w, c), integers(rng, r, s, c // groups, k)
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    bias = integers(rng, k)
    for algo in algorithms(case):
        plain = kernels.conv2d(x, weight, bias, algo=algo, **window)
        residual = integers(rng, *plain.shape)
        for relu in (False, True):
            out, moments = poison(*plain.shape), (np.full(k, np.nan), np.full(k, np.nan))
            kernels.conv2d(x, weight, bias, residual=residual, relu=relu, moments=moments, algo=algo, out=out, **window)
            np.testing.assert_array_equal(out, kernels.add(plain, residual, relu=relu))
            same_moments(moments, out)
            out = kernels.conv2d(
                x, weight, bias, residual=residual, relu=relu, algo=algo, out=poison(*plain.shape), **window
            )
            np.testing.assert_array_equal(out, kernels.add(plain, residual, relu=relu))
        kernels.conv2d(x, weight, bias, moments=moments, algo=algo, out=out, **window)
        np.testing.assert_array_equal(out, plain)
        same_moments(moments, plain)


@pytest.mark.parametrize("case", MORE, ids=str)
def test_threads_change_no_bit(rng, with_threads, case):
    n, h, w, c, r, s, k, stride, padding, dilation, groups = case
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    weight = rng.standard_normal((r, s, c // groups, k)).astype(np.float32)
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = kernels.conv2d(x, weight, **window).shape
    residual = rng.standard_normal(shape).astype(np.float32)

    def run():
        mean, m2 = np.empty(k), np.empty(k)
        y = kernels.conv2d(x, weight, residual=residual, relu=True, moments=(mean, m2), **window)
        return y, mean, m2

    first = with_threads(1, run)
    for threads in (2, 3, 7):
        for a, b in zip(first, with_threads(threads, run), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_images(rng):
    moments = np.full(4, np.nan), np.full(4, np.nan)
    y = kernels.conv2d(np.empty((0, 5, 5, 3), np.float32), np.ones((3, 3, 3, 4), np.float32), moments=moments)
    assert y.shape == (0, 3, 3, 4)
    assert not moments[0].any()
    assert not moments[1].any()


def test_wrong_arrays(rng):
    x, weight = np.ones((1, 5, 5, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
    with pytest.raises(TypeError, match="conv2d: mean has dtype float32, expected float64"):
        kernels.conv2d(x, weight, moments=(np.ones(4, np.float32), np.ones(4)))
    with pytest.raises(ValueError, match=r"conv2d: m2 has shape \(3,\), expected \(4,\)"):
        kernels.conv2d(x, weight, moments=(np.ones(4), np.ones(3)))
