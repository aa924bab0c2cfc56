"""histogram against numpy, otsu_threshold against its formula in numpy; their errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels as K

DTYPES = (np.uint8, np.uint16, np.float32)


def image(shape, dtype, seed=0):
    """Two classes of levels."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < 0.4, rng.normal(0.3, 0.05, shape), rng.normal(0.7, 0.1, shape)).clip(0, 1)
    return values.astype(np.float32) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [1, 7, 256, 1000, 5000])
@pytest.mark.parametrize("range", [None, (0.0, 200.0), (0.25, 0.5), (3, 3), (0, 256), (90, 97)])
def test_equals_numpy(backend, dtype, bins, range):
    for shape in ((1,), (37, 53), (70, 1001)):
        x = image(shape, dtype)
        counts, edges = K.histogram(x, bins, range)
        expected, expected_edges = np.histogram(x, bins, range)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected)
        np.testing.assert_array_equal(edges, expected_edges)


def test_values_on_the_edges():
    edges = np.linspace(-1, 1, 51, dtype=np.float32)
    around = np.concatenate([edges, np.nextafter(edges, np.float32(-2)), np.nextafter(edges, np.float32(2))])
    for bins in (50, 25, 10):
        np.testing.assert_array_equal(K.histogram(around, bins, (-1, 1))[0], np.histogram(around, bins, (-1, 1))[0])


def test_values_that_are_not_numbers():
    x = np.array([0.1, np.nan, 0.9, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(K.histogram(x, 2, (0, 1))[0], [1, 1])
    with pytest.raises(ValueError, match="not finite"):
        K.histogram(x)
    for size in (1, 5, 40, 100000):
        y = np.ones(size, np.float32)
        y[-1] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            K.histogram(y)


@pytest.mark.parametrize("span", [(-3e38, 3e38), (1.0, 1.0000001), (0.0, 1e-44), (1e300, 2e300)])
def test_ranges_that_float32_cannot_hold(span):
    x = np.array([-3e38, 0, 1e-44, 1, 3e38], np.float32)
    with pytest.raises(ValueError, match=r"cannot hold|Too many bins|not finite"):
        K.histogram(x, 64, span)
    assert K.histogram(x, 4, (np.float64(0), np.float64(2)))[1].dtype == np.float32


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    bins=st.integers(1, 300),
    low=st.floats(-5, 5, width=32),
    width=st.floats(0, 100, width=32),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=80, deadline=None)
def test_any_range_equals_numpy(shape, bins, low, width, dtype):
    x = image(shape, dtype)
    try:
        expected = np.histogram(x, bins, (low, low + width))[0]
    except ValueError:  # more bins than numbers between the ends
        return
    np.testing.assert_array_equal(K.histogram(x, bins, (low, low + width))[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_does_not_depend_on_threads(with_threads, dtype):
    x = image((700, 900), dtype)
    results = [with_threads(n, lambda: K.histogram(x, 100)[0]) for n in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def otsu(counts, centres):
    """The formula, bin by bin."""
    best, found = -1.0, 0
    counts, centres = counts.astype(np.float64), centres.astype(np.float64)
    for k in range(len(counts) - 1):
        below, above = counts[: k + 1], counts[k + 1 :]
        if below.sum() == 0 or above.sum() == 0:
            continue
        distance = below @ centres[: k + 1] / below.sum() - above @ centres[k + 1 :] / above.sum()
        variance = below.sum() * above.sum() * distance**2
        if variance > best * (1 + 1e-12):
            best, found = variance, k
    return float(centres[found])


@pytest.mark.parametrize("seed", range(4))
def test_otsu_equals_its_formula(backend, seed):
    x = image((60, 70), np.uint8, seed)
    assert K.otsu_threshold(x) == otsu(np.bincount(x.ravel(), minlength=256), np.arange(256))
    wide = image((60, 70), np.uint16, seed) // 64
    assert K.otsu_threshold(wide) == otsu(np.bincount(wide.ravel()), np.arange(wide.max() + 1))
    y = image((60, 70), np.float32, seed)
    counts, edges = np.histogram(y, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    assert K.otsu_threshold(y) == otsu(counts, centres)
    assert K.otsu_threshold(hist=(counts, centres)) == K.otsu_threshold(y)
    assert 0.4 < K.otsu_threshold(y) < 0.6


def test_otsu_of_few_values():
    for dtype in DTYPES:
        assert K.otsu_threshold(np.full((4, 5), 7, dtype)) == 7
    assert K.otsu_threshold(np.array([3, 3, 200], np.uint8)) == 3
    assert K.otsu_threshold(hist=([0, 5, 0], [1.0, 2.0, 3.0])) == 2


def test_errors():
    with pytest.raises(TypeError, match="dtype float64"):
        K.histogram(np.zeros(4))
    with pytest.raises(TypeError, match="not C-contiguous"):
        K.histogram(np.zeros(8, np.uint8)[::2])
    for bins in (0, 2**24, 2.5):
        with pytest.raises(ValueError, match="bins is"):
            K.histogram(np.zeros(4, np.uint8), bins)
    for span in ((1, 0), (0, np.inf), (np.nan, 1)):
        with pytest.raises(ValueError, match="expected two finite ascending numbers"):
            K.histogram(np.zeros(4, np.float32), 4, span)
    with pytest.raises(ValueError, match="expected values"):
        K.histogram(np.zeros((0, 4), np.uint8))
    assert K.histogram(np.zeros((0, 4), np.float32), 3, (0, 1))[0].tolist() == [0, 0, 0]
    with pytest.raises(TypeError, match="either an image or a histogram"):
        K.otsu_threshold()
    with pytest.raises(ValueError, match="expected values"):
        K.otsu_threshold(np.zeros((0, 4), np.uint8))
    with pytest.raises(ValueError, match="two equal lengths"):
        K.otsu_threshold(hist=([1, 2], [1, 2, 3]))
    with pytest.raises(ValueError, match="all 0"):
        K.otsu_threshold(hist=([0, 0], [1, 2]))
