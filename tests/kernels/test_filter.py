"""gaussian_filter against scipy.ndimage: its bits in float64, a stated bound in float32, its errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels as K
from medmpi.kernels import filter as filter_module

ndimage = pytest.importorskip("scipy.ndimage")

MODES = ("reflect", "constant", "nearest", "mirror", "wrap")
SHAPES = (
    ((37, 53), None),
    ((5, 6, 7), None),
    ((40,), None),
    ((2, 33, 47, 3), (1, 2)),
    ((1,), None),
    ((3, 20, 64, 17), (1, 2, 3)),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "axes"), SHAPES)
def test_equals_scipy(backend, shape, axes, mode):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape)
    for sigma, order in itertools.product((0.5, 1.0, 2.3, 5.0), (0, 1, 2)):
        arguments = {"sigma": sigma, "order": order, "mode": mode, "cval": 1.5, "axes": axes}
        expected = ndimage.gaussian_filter(x, **arguments)
        np.testing.assert_array_equal(K.gaussian_filter(x, **arguments), expected)  # the same bits

        single = x.astype(np.float32)
        result = K.gaussian_filter(single, **arguments)
        truth = ndimage.gaussian_filter(single.astype(np.float64), **arguments)
        gain = np.abs(filter_module._taps(sigma, order, int(4 * sigma + 0.5))[0]).sum() ** len(axes or shape)
        assert result.dtype == np.float32
        assert np.abs(result - truth).max() <= 1e-6 * max(gain, 1.0) * max(np.abs(single).max(), 1.5)


@pytest.mark.parametrize("n", [512, 700])
def test_large_planes_equal_scipy(n):
    x = np.random.default_rng(2).standard_normal((n, n + 3)).astype(np.float32)
    for sigma, mode in ((1, "reflect"), (9, "constant"), (20, "mirror"), (90, "nearest"), (200, "reflect")):
        truth = ndimage.gaussian_filter(x.astype(np.float64), sigma, mode=mode)
        assert np.abs(K.gaussian_filter(x, sigma, mode=mode) - truth).max() <= 1e-6 * np.abs(x).max()


def test_result_does_not_depend_on_threads():
    x = np.random.default_rng(3).standard_normal((3, 300, 211)).astype(np.float32)
    threads = K.threads()
    results = []
    for count in (1, 2, 3):
        K.set_threads(count)
        results.append(K.gaussian_filter(x, 3.0, axes=(1, 2)))
    K.set_threads(threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sigma=st.floats(0, 6),
    mode=st.sampled_from(MODES),
    radius=st.one_of(st.none(), st.integers(0, 30)),
)
@settings(max_examples=80, deadline=None)
def test_any_shape_equals_scipy(shape, sigma, mode, radius):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = ndimage.gaussian_filter(x, sigma, mode=mode, radius=radius)
    np.testing.assert_array_equal(K.gaussian_filter(x, sigma, mode=mode, radius=radius), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float64])
def test_dtypes_and_outputs(host_backend, dtype):
    x = np.random.default_rng(4).integers(0, 250, (40, 51)).astype(dtype)
    result = K.gaussian_filter(x, 2.0)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, ndimage.gaussian_filter(x, 2.0))
    expected = ndimage.gaussian_filter(x, 2.0, output=np.float64)
    np.testing.assert_array_equal(K.gaussian_filter(x, 2.0, output=np.float64), expected)


def test_in_place_and_identity(host_backend):
    x = np.arange(100 * 100, dtype=np.float32).reshape(100, 100)
    expected = K.gaussian_filter(x, 1.0)
    assert K.gaussian_filter(x, 1.0, output=x) is x
    np.testing.assert_array_equal(x, expected)
    same = K.gaussian_filter(x, 0)
    np.testing.assert_array_equal(same, x)
    assert not np.shares_memory(same, x)


def test_scipys_axes_cases():
    x = np.arange(6 * 8 * 12, dtype=np.float64).reshape(6, 8, 12)
    choices = [itertools.combinations(range(-3, 3), 1), itertools.combinations(range(-3, 3), 2), [(0, 1, 2)]]
    for axes in itertools.chain(*choices):
        if len({a % 3 for a in axes}) != len(axes):
            with pytest.raises(ValueError, match="axes must be unique"):
                K.gaussian_filter(x, 1.0, axes=axes)
            continue
        sigmas = tuple(1.0 if a in {b % 3 for b in axes} else 0.0 for a in range(3))
        np.testing.assert_allclose(K.gaussian_filter(x, 1.0, axes=axes), K.gaussian_filter(x, sigmas), rtol=1e-13)
    modes = np.array(["reflect", "nearest", "constant"])
    arguments = {"radius": np.array([4, 2, 3]), "order": np.array([0, 1, 2]), "mode": modes}
    for pair in ((0, 1), (0, 2), (1, 2), (-3, -1)):
        some = {key: value[list(pair)] for key, value in arguments.items()}
        sigmas = [1.0 if a in {b % 3 for b in pair} else 0.0 for a in range(3)]
        result = K.gaussian_filter(x, [1.0] * 2, axes=pair, **some)
        np.testing.assert_array_equal(result, ndimage.gaussian_filter(x, sigmas, **arguments))


def test_scipys_sequential_modes_and_truncation():
    x = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    once = K.gaussian_filter1d(x, 1, axis=0, mode="reflect")
    twice = K.gaussian_filter1d(once, 1, axis=1, mode="wrap")
    np.testing.assert_array_equal(twice, K.gaussian_filter(x, 1, mode=["reflect", "wrap"]))
    point = np.zeros((100, 100))
    point[50, 50] = 1
    assert np.count_nonzero(K.gaussian_filter(point, 5, truncate=2) > 0) == 21**2
    assert np.count_nonzero(K.gaussian_filter(point, 5, truncate=5) > 0) == 51**2
    f = K.gaussian_filter(point, [0.5, 2.5], truncate=3.5) > 0
    assert (f.any(axis=0).sum(), f.any(axis=1).sum()) == (19, 5)
    line = np.zeros(51)
    line[25] = 1
    assert np.count_nonzero(K.gaussian_filter1d(line, 2, truncate=3.5) > 0) == 15
    assert K.gaussian_filter(np.zeros(1), 1, order=3) == 0


def images(shape):
    """An impulse in the middle and one at a corner, a step, noise, and smooth structures with noise."""
    rng = np.random.default_rng(5)
    impulse, corner = np.zeros(shape), np.zeros(shape)
    impulse[tuple(n // 2 for n in shape)] = 1
    corner[(1,) * len(shape)] = 1
    step = np.broadcast_to(np.arange(shape[-1]) > shape[-1] // 2, shape).astype(float)
    noise = rng.random(shape)
    waves = sum(np.sin(np.arange(n) / 17.0).reshape(-1, *[1] * (len(shape) - 1 - k)) for k, n in enumerate(shape))
    return [impulse, corner, step, noise, waves + 0.3 * noise]


#: Largest error of the recursive filter for each axis, relative to the input's range.
RECURSIVE_ERROR = {1.0: 3e-2, 2.0: 1e-2, 4.0: 7e-3, 12.0: 7e-3, 50.0: 7e-3}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigma", RECURSIVE_ERROR)
@pytest.mark.parametrize(("shape", "axes"), [((120, 201), None), ((230,), None), ((20, 30, 35), None)])
def test_recursive_is_close_to_the_gaussian(backend, shape, axes, sigma, mode):
    for x in images(shape):
        truth = ndimage.gaussian_filter(x, sigma, mode=mode, cval=0.2, axes=axes, truncate=6)
        bound = RECURSIVE_ERROR[sigma] * len(shape) * np.ptp(x)
        result = K.gaussian_filter(x, sigma, mode=mode, cval=0.2, axes=axes, method="recursive")
        assert np.abs(result - truth).max() <= bound
        single = K.gaussian_filter(x.astype(np.float32), sigma, mode=mode, cval=0.2, axes=axes, method="recursive")
        assert single.dtype == np.float32
        assert np.abs(single - result).max() <= 1e-5 * np.abs(x).max()


@pytest.mark.parametrize("sigma", [1.0, 4.0, 50.0, 200.0])
def test_recursive_ends_are_those_of_a_longer_line(sigma):
    """Triggs and Sdika: a border that goes on with its last value costs nothing and changes nothing."""
    x = np.random.default_rng(6).random((3, 90))
    far = int(12 * sigma)
    longer = np.pad(x, ((0, 0), (far, far)), mode="edge")
    expected = K.gaussian_filter(longer, sigma, mode="nearest", axes=1, method="recursive")[:, far:-far]
    result = K.gaussian_filter(x, sigma, mode="nearest", axes=1, method="recursive")
    assert np.abs(result - expected).max() <= (1e-7 if sigma <= 50 else 1e-5)
    flat = K.gaussian_filter(np.full((5, 70), 3.5, np.float32), sigma, method="recursive")
    assert np.abs(flat - 3.5).max() <= 1e-5


def test_recursive_channels_batches_and_threads(with_threads):
    x = np.random.default_rng(7).random((2, 70, 81, 3), np.float32)
    results = [with_threads(n, lambda: K.gaussian_filter(x, 6, axes=(1, 2), method="recursive")) for n in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    alone = K.gaussian_filter(np.ascontiguousarray(x[1, :, :, 2]), 6, method="recursive")
    np.testing.assert_allclose(results[0][1, :, :, 2], alone, atol=1e-6)


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sigma=st.floats(1, 20),
    mode=st.sampled_from(MODES),
)
@settings(max_examples=60, deadline=None)
def test_recursive_of_any_shape_stays_in_range(shape, sigma, mode):
    x = np.random.default_rng(0).random(shape)
    result = K.gaussian_filter(x, sigma, mode=mode, cval=0.5, method="recursive")
    assert result.shape == x.shape
    assert (result > -0.05).all()
    assert (result < 1.05).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 1, "order": -1}, "order has -1"),
        ({"sigma": np.nan}, "sigma has nan"),
        ({"sigma": -2}, "sigma has -2"),
        ({"sigma": [1, 2, 3]}, "sequence argument must have length equal"),
        ({"sigma": 1, "mode": "mirrored"}, "mode has 'mirrored'"),
        ({"sigma": 1, "axes": (3,)}, "out of range"),
        ({"sigma": 1, "axes": (1.5,)}, "must be integers"),
        ({"sigma": 1, "output": np.zeros((3, 3))}, "output has shape"),
        ({"sigma": 1, "radius": 1.5}, "radius has 1.5"),
        ({"sigma": 1, "method": "iir"}, "method is 'iir'"),
        ({"sigma": 0.5, "method": "recursive"}, "expected 0 or 1 to 200"),
        ({"sigma": 201, "method": "recursive"}, "expected 0 or 1 to 200"),
        ({"sigma": 2, "order": 1, "method": "recursive"}, "has no derivatives"),
        ({"sigma": 2, "radius": 3, "method": "recursive"}, "no radius"),
    ],
)
def test_errors(host_backend, arguments, message):
    with pytest.raises(ValueError, match=message):
        K.gaussian_filter(np.zeros((4, 5)), **arguments)


def test_complex_is_refused():
    with pytest.raises(TypeError, match="expected one of real numbers"):
        K.gaussian_filter(np.zeros(3, complex), 1.0)
