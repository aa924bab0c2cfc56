"""median_filter against scipy.ndimage: the same values for every window, border and element type; its errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels as K

ndimage = pytest.importorskip("scipy.ndimage")

MODES = ("reflect", "constant", "nearest", "mirror", "wrap")
DTYPES = (np.uint8, np.uint16, np.float32)


def image(shape, dtype, seed=0):
    """Values of the dtype's whole range; float32 of both signs and with repetitions."""
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        values = rng.standard_normal(shape).astype(np.float32)
        return np.where(rng.random(shape) < 0.3, np.round(values), values).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((37, 53), 3),
        ((40, 150), 5),
        ((33, 47), 7),
        ((5, 70), (3, 9)),
        ((20, 31), 17),
        ((3, 4), 21),
        ((6, 13, 70), 3),
        ((5, 6, 20), (1, 3, 5)),
        ((4, 9, 20), 7),
        ((90,), 11),
    ],
)
def test_equals_scipy(backend, shape, size, dtype, mode):
    x = image(shape, dtype)
    expected = ndimage.median_filter(x, size=size, mode=mode, cval=7)
    result = K.median_filter(x, size, mode, cval=7)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 5, 9, 19])
def test_tiles_and_channels(backend, dtype, size):
    wide = image((70, 1500), dtype)
    np.testing.assert_array_equal(K.median_filter(wide, size), ndimage.median_filter(wide, size=size))
    batch = image((2, 40, 41, 3), dtype)
    result = K.median_filter(batch, size, axes=(1, 2))
    np.testing.assert_array_equal(result, ndimage.median_filter(batch, size=(1, size, size, 1)))


@pytest.mark.parametrize("size", [3, 5, 7, 19])
def test_flat_and_smooth_images(size):
    ramp = np.add.outer(np.arange(64), np.arange(90)).astype(np.uint8)
    for x in (ramp, np.zeros_like(ramp), np.full_like(ramp, 255)):
        np.testing.assert_array_equal(K.median_filter(x, size), ndimage.median_filter(x, size=size))


def test_networks_sort_zeros_and_ones():
    """By the 0-1 principle a network that finds the median of all zeros and ones finds it of anything."""
    window = (np.arange(512)[:, None] >> np.arange(9)) & 1
    x = np.ascontiguousarray(window.reshape(512, 3, 3), dtype=np.uint8)
    result = K.median_filter(x, 3, axes=(1, 2))[:, 1, 1]
    np.testing.assert_array_equal(result, np.median(window, axis=1))
    bits = np.random.default_rng(5).random((20000, 27)) < np.random.default_rng(6).uniform(0.2, 0.8, (20000, 1))
    cubes = np.ascontiguousarray(bits.reshape(-1, 3, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        K.median_filter(cubes, 3, axes=(1, 2, 3))[:, 1, 1, 1], np.median(bits, axis=1).astype(np.uint8)
    )
    squares = np.ascontiguousarray(bits[:, :25].reshape(-1, 5, 5), dtype=np.uint8)
    np.testing.assert_array_equal(
        K.median_filter(squares, 5, axes=(1, 2))[:, 2, 2], np.median(bits[:, :25], axis=1).astype(np.uint8)
    )


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    size=st.sampled_from([1, 3, 5, 7, 9]),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=80, deadline=None)
def test_any_shape_equals_scipy(shape, size, mode, dtype):
    x = image(shape, dtype)
    np.testing.assert_array_equal(K.median_filter(x, size, mode), ndimage.median_filter(x, size=size, mode=mode))


@pytest.mark.parametrize("size", [3, 9, 17])
def test_result_does_not_depend_on_threads(with_threads, size):
    x = image((150, 211), np.uint8)
    results = [with_threads(n, lambda: K.median_filter(x, size)) for n in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_order_of_special_values(backend):
    x = np.array([[np.nan, 1, 2], [np.inf, 3, -np.inf], [-0.0, 0.0, np.nan]], np.float32)
    assert K.median_filter(x, 3)[1, 1] == 2
    assert np.isnan(K.median_filter(np.full((3, 3), np.nan, np.float32), 3)).all()
    assert K.median_filter(x, (1, 7), "constant", cval=np.inf)[0, 0] == np.inf


def test_out_and_window_of_one():
    x = image((9, 10), np.uint16)
    out = np.empty_like(x)
    assert K.median_filter(x, 1, out=out) is out
    np.testing.assert_array_equal(out, x)
    with pytest.raises(ValueError, match="overlaps"):
        K.median_filter(x, 3, out=x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size has 4, expected odd"),
        ({"size": 0}, "size has 0"),
        ({"size": -3}, "size has -3"),
        ({"size": 2.5}, "size has 2.5, expected integers"),
        ({"size": (3, 3, 3)}, "size has length 3, expected 2"),
        ({"size": 257}, "more than 65535 values"),
        ({"size": 3, "mode": "mirrored"}, "mode is 'mirrored'"),
        ({"size": 3, "mode": "constant", "cval": 256}, "cval has 256, expected a value of uint8"),
        ({"size": 3, "axes": (0, 0)}, "axes must be unique"),
        ({"size": 3, "axes": 2}, "out of range"),
        ({"size": 3, "out": np.zeros((3, 3), np.uint8)}, "out has shape"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        K.median_filter(np.zeros((4, 5), np.uint8), **arguments)


def test_inputs_that_are_refused():
    with pytest.raises(TypeError, match="dtype float64, expected uint8, uint16 or float32"):
        K.median_filter(np.zeros((4, 5)), 3)
    with pytest.raises(TypeError, match="not C-contiguous"):
        K.median_filter(np.zeros((4, 6), np.uint8)[:, ::2], 3)
    with pytest.raises(ValueError, match=r"input has shape \(0, 5\)"):
        K.median_filter(np.zeros((0, 5), np.uint8), 3)
    with pytest.raises(ValueError, match="lie too far apart"):
        K.median_filter(np.zeros((2, 3, 4, 5), np.uint8), 3)
