"""Colour spaces against float64 formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels as K


def hsv_of(rgb):
    """scikit-image's formula in float64."""
    rgb = rgb.astype(np.float64) / (255 if rgb.dtype == np.uint8 else 1)
    r, g, b = np.moveaxis(rgb, -1, 0)
    value, delta = rgb.max(-1), np.ptp(rgb, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        hue = np.where(r == value, (g - b) / delta, 0)
        hue = np.where(g == value, 2 + (b - r) / delta, hue)
        hue = np.where(b == value, 4 + (r - g) / delta, hue)
        saturation = np.where(delta > 0, delta / value, 0)
    return np.stack([np.where(delta > 0, hue / 6 % 1, 0), saturation, value], -1)


def rgb_of(hsv):
    hsv = hsv.astype(np.float64)
    h, s, v = np.moveaxis(hsv, -1, 0)
    sector = np.floor(h * 6)
    f = h * 6 - sector
    p, q, t = v * (1 - s), v * (1 - f * s), v * (1 - (1 - f) * s)
    choices = [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)]
    return np.stack([np.choose(sector.astype(int) % 6, [c[k] for c in choices]) for k in range(3)], -1)


def circular(a, b):
    difference = np.abs(a - b)
    return np.minimum(difference, 1 - difference)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 7, 3), (2, 40, 51, 3), (700, 100, 3), (0, 4, 3)])
def test_hsv_equals_the_formula(backend, shape):
    rng = np.random.default_rng(0)
    for x in (rng.integers(0, 256, shape, np.uint8), rng.random(shape, np.float32)):
        hsv, expected = K.rgb_to_hsv(x), hsv_of(x)
        assert hsv.dtype == np.float32
        assert circular(hsv[..., 0], expected[..., 0]).max(initial=0) <= 1e-6
        np.testing.assert_allclose(hsv[..., 1:], expected[..., 1:], atol=1e-6)
        assert ((hsv >= 0) & (hsv <= 1)).all()
        assert (hsv[..., 0] < 1).all()
    hsv = rng.random(shape, np.float32)
    np.testing.assert_allclose(K.hsv_to_rgb(hsv), rgb_of(hsv), atol=1e-6)


def test_all_colours_of_a_coarse_cube():
    steps = np.array([0, 1, 2, 127, 128, 200, 254, 255], np.uint8)
    x = np.stack(np.meshgrid(steps, steps, steps), -1)
    hsv = K.rgb_to_hsv(x)
    assert circular(hsv[..., 0], hsv_of(x)[..., 0]).max() <= 1e-6
    np.testing.assert_allclose(K.hsv_to_rgb(hsv), x / 255, atol=1e-6)
    primary = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [0, 0, 0]], np.uint8)
    np.testing.assert_allclose(K.rgb_to_hsv(primary)[:, 0], [0, 1 / 3, 2 / 3, 0, 0], atol=1e-7)


def test_hue_is_circular():
    hue = np.array([-1.25, -0.25, 0.75, 1.75, 0.0, 1.0, 2.0], np.float32)
    rgb = K.hsv_to_rgb(np.stack([hue, np.full(7, 0.5, np.float32), np.ones(7, np.float32)], -1))
    np.testing.assert_allclose(rgb[:4], np.broadcast_to(rgb[2], (4, 3)), atol=1e-6)
    np.testing.assert_allclose(rgb[4:], np.broadcast_to(rgb[4], (3, 3)), atol=1e-6)


@given(shape=st.lists(st.integers(0, 9), max_size=3), dtype=st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=40, deadline=None)
def test_any_shape_survives_the_round_trip(shape, dtype):
    rng = np.random.default_rng(1)
    x = (rng.random((*shape, 3)) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    back = K.hsv_to_rgb(K.rgb_to_hsv(x))
    np.testing.assert_allclose(back, x / (255 if dtype == np.uint8 else 1), atol=1e-6)


def test_gray(backend):
    rng = np.random.default_rng(2)
    weights = np.array([0.299, 0.587, 0.114])
    x = rng.integers(0, 256, (61, 83, 3), np.uint8)
    gray = K.rgb_to_gray(x)
    assert gray.dtype == np.uint8
    np.testing.assert_array_equal(gray, (x.astype(np.int64) @ [9798, 19235, 3735] + 16384) >> 15)
    assert np.abs(gray - x @ weights).max() < 0.51
    y = rng.random((61, 83, 3), np.float32)
    np.testing.assert_allclose(K.rgb_to_gray(y), y.astype(np.float64) @ weights, atol=1e-6)


def test_gray_equals_opencv():
    cv2 = pytest.importorskip("cv2")
    x = np.random.default_rng(3).integers(0, 256, (256, 300, 3), np.uint8)
    np.testing.assert_array_equal(K.rgb_to_gray(x), cv2.cvtColor(x, cv2.COLOR_RGB2GRAY))


def test_result_does_not_depend_on_threads(with_threads):
    x = np.random.default_rng(4).random((300, 400, 3), np.float32)
    results = [with_threads(n, lambda: K.rgb_to_hsv(x)) for n in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_errors():
    for function in (K.rgb_to_hsv, K.hsv_to_rgb, K.rgb_to_gray):
        with pytest.raises(ValueError, match="expected three channels"):
            function(np.zeros((4, 4), np.float32))
        with pytest.raises(TypeError, match="dtype float64"):
            function(np.zeros((4, 3)))
        with pytest.raises(ValueError, match="out has shape"):
            function(np.zeros((4, 3), np.float32), out=np.zeros((5, 3), np.float32))
        with pytest.raises(TypeError, match="not C-contiguous"):
            function(np.zeros((8, 6), np.float32)[:, ::2])
