"""Sums, scalings, checks and normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [0, 1, 17, 1000, 70_001]


def numbers(rng, n):
    return rng.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
def test_add(rng, n):
    a, b = numbers(rng, n), numbers(rng, n)
    want = a + b
    np.testing.assert_array_equal(kernels.add(a, b, out=np.full(n, np.nan, np.float32)), want)
    np.testing.assert_array_equal(kernels.add(a, b.copy(), out=a), want)


def test_add_onto_the_second_and_twice_the_same(rng):
    a, b = numbers(rng, 100), numbers(rng, 100)
    want = a + b
    kernels.add(a, b, out=b)
    np.testing.assert_array_equal(b, want)
    np.testing.assert_array_equal(kernels.add(a, a), 2 * a)


@pytest.mark.parametrize("n", SIZES)
def test_accumulate(rng, n):
    x, y = numbers(rng, n), numbers(rng, n)
    want = y + 0.5 * x
    assert kernels.accumulate(x, y, alpha=0.5) is y
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", SIZES)
def test_scale_and_fill(rng, n):
    x = numbers(rng, n)
    want = x * np.float32(0.25)
    assert kernels.scale_(x, 0.25) is x
    np.testing.assert_array_equal(x, want)
    np.testing.assert_array_equal(kernels.fill_(x), 0)
    np.testing.assert_array_equal(kernels.fill_(x, 2.5), 2.5)


@pytest.mark.parametrize("n", SIZES)
def test_sum_squares(rng, with_threads, n):
    x = numbers(rng, n) * 1e18  # squares overflow float32
    got = with_threads(1, lambda: kernels.sum_squares(x))
    assert got == pytest.approx((x.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert with_threads(3, lambda: kernels.sum_squares(x)) == got


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_all_finite(rng, n, broken):
    x = numbers(rng, n)
    assert kernels.all_finite(x)
    for at in {0, n // 2, n - 1} if n else ():
        bad = x.copy()
        bad[at] = broken
        assert not kernels.all_finite(bad)
    assert kernels.all_finite(np.array([3.4e38, -3.4e38, 1e-45], np.float32))


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (3, 40, 40, 1), (0, 4, 4, 3), (2, 9, 9, 20), (1, 2, 2, 1024)])
def test_normalize(rng, shape):
    images = rng.integers(0, 256, shape).astype(np.uint8)
    mean, std = rng.uniform(0.3, 0.6, shape[-1]), rng.uniform(0.1, 0.4, shape[-1])
    got = kernels.normalize(images, mean, list(std), out=np.full(shape, np.nan, np.float32))
    np.testing.assert_allclose(got, (images / 255 - mean) / std, rtol=1e-5, atol=2e-6)


def test_errors():
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"add: b has shape \(3,\), expected \(4,\), that of a"):
        kernels.add(x, x[:3])
    with pytest.raises(ValueError, match="accumulate: out overlaps x"):
        kernels.accumulate(x, x)
    with pytest.raises(TypeError, match="scale_: x has dtype float64, expected float32"):
        kernels.scale_(np.ones(4), 2)
    with pytest.raises(TypeError, match="sum_squares: x is not C-contiguous"):
        kernels.sum_squares(x[::2])
    images = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"normalize: mean has shape \(1,\) and std \(3,\), expected \(3,\)"):
        kernels.normalize(images, [0.5], [1, 1, 1])
    with pytest.raises(ValueError, match=r"normalize: .*expected finite numbers, std above 0"):
        kernels.normalize(images, [0.5] * 3, [1, 0, 1])
    with pytest.raises(TypeError, match="normalize: images has dtype float32, expected uint8"):
        kernels.normalize(images.astype(np.float32), [0.5] * 3, [1] * 3)
