"""Pooling against float64 loops, torch and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

WINDOWS = [
    {"kernel_size": 2},
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 5), "stride": (3, 2), "padding": (1, 2)},
    {"kernel_size": (1, 4), "stride": (2, 4), "ceil_mode": True},
]
DILATED = [
    {"kernel_size": 2, "stride": 1, "dilation": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": (1, 2)},
    {"kernel_size": (2, 3), "stride": 1, "padding": 1, "dilation": 3, "ceil_mode": True},
]
SHAPES = [(2, 7, 9, 1), (1, 8, 8, 20), (2, 9, 8, 67), (3, 10, 7, 64)]


def pair(value):
    return (value, value) if isinstance(value, int) else value


def places(length, kernel, stride, pad, dilation, ceil_mode):
    """The taps' positions of each window along an axis, outside ones included."""
    room = length + 2 * pad - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + pad:
        count -= 1
    return [[i * stride - pad + t * dilation for t in range(kernel)] for i in range(count)]


def windows(shape, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    stride = kernel_size if stride is None else stride
    axes = zip(shape[1:3], *map(pair, (kernel_size, stride, padding, dilation)), strict=True)
    return [places(*axis, ceil_mode) for axis in axes]


def reference_max(x, **window):
    """Values, and the flat position of each maximum in its image: the first of equals, the last NaN."""
    rows, columns = windows(x.shape, **window)
    y = np.full((x.shape[0], len(rows), len(columns), x.shape[3]), -np.inf)
    where = np.full(y.shape, -1)
    for p, q in np.ndindex(y.shape[1:3]):
        for h, w in itertools.product(rows[p], columns[q]):
            if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
                v = x[:, h, w]
                better = (v > y[:, p, q]) | np.isnan(v) | (where[:, p, q] < 0)
                y[:, p, q][better] = v[better]
                where[:, p, q][better] = h * x.shape[2] + w
    return y, where


def reference_average(x, count_include_pad=True, **window):
    """The mean of each window; counted padding reaches no further than the padding goes."""
    rows, columns = windows(x.shape, **window)
    pads = pair(window.get("padding", 0))
    y = np.zeros((x.shape[0], len(rows), len(columns), x.shape[3]))
    for p, q in np.ndindex(y.shape[1:3]):
        inside = [[t for t in taps if 0 <= t < n] for taps, n in ((rows[p], x.shape[1]), (columns[q], x.shape[2]))]
        padded = [
            sum(t < n + pad for t in taps)
            for taps, n, pad in ((rows[p], x.shape[1], pads[0]), (columns[q], x.shape[2], pads[1]))
        ]
        divisor = padded[0] * padded[1] if count_include_pad else len(inside[0]) * len(inside[1])
        y[:, p, q] = x.astype(np.float64)[:, inside[0]][:, :, inside[1]].sum(axis=(1, 2)) / divisor
    return y


def poison(shape):
    return np.full(shape, np.nan, np.float32)


def torch_of(array, grad=False):
    import torch

    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)), requires_grad=grad)


def numpy_of(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS + DILATED)
def test_max(rng, shape, window):
    x = rng.integers(-3, 4, shape).astype(np.float32)  # many equal values
    want, where = reference_max(x, **window)
    y, indices = kernels.max_pool2d(x, **window, out=poison(want.shape))
    np.testing.assert_array_equal(y, want)
    dy = rng.standard_normal(want.shape).astype(np.float32)
    dx = kernels.max_pool2d_backward(dy, indices, x_shape=shape, out=poison(shape))
    want_dx = np.zeros((shape[0], shape[1] * shape[2], shape[3]))
    for n, p, q, c in np.ndindex(where.shape):
        if where[n, p, q, c] >= 0:
            want_dx[n, where[n, p, q, c], c] += dy[n, p, q, c]
    np.testing.assert_allclose(dx, want_dx.reshape(shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS + DILATED)
def test_max_against_torch(rng, window):
    torch = pytest.importorskip("torch")
    x = rng.integers(-3, 4, (2, 11, 9, 18)).astype(np.float32)
    leaf = torch_of(x, grad=True)
    want = torch.nn.functional.max_pool2d(leaf, **window)
    y, indices = kernels.max_pool2d(x, **window)
    np.testing.assert_array_equal(y, numpy_of(want))
    dy = rng.standard_normal(y.shape).astype(np.float32)
    want.backward(torch_of(dy))
    dx = kernels.max_pool2d_backward(dy, indices, x_shape=x.shape)
    np.testing.assert_allclose(dx, numpy_of(leaf.grad), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 20])
def test_max_takes_nan_and_minus_infinity_like_torch(channels):
    torch = pytest.importorskip("torch")
    x = np.full((1, 4, 6, channels), -np.inf, np.float32)
    x[0, 0, 0] = x[0, 1, 1] = x[0, 2, 3] = np.nan
    x[0, 0, 1], x[0, 3, 3] = 5, 7
    leaf = torch_of(x, grad=True)
    want = torch.nn.functional.max_pool2d(leaf, 2)
    want.backward(torch.ones_like(want))
    y, indices = kernels.max_pool2d(x, 2)
    np.testing.assert_array_equal(y, numpy_of(want))
    dx = kernels.max_pool2d_backward(np.ones_like(y), indices, x_shape=x.shape)
    np.testing.assert_array_equal(dx, numpy_of(leaf.grad))


@pytest.mark.parametrize("channels", [3, 33])
def test_max_of_windows_beyond_one_byte(rng, channels):
    x = rng.standard_normal((2, 20, 21, channels)).astype(np.float32)
    y, indices = kernels.max_pool2d(x, (18, 20), stride=1)
    want, where = reference_max(x, kernel_size=(18, 20), stride=1)
    np.testing.assert_array_equal(y, want)
    assert indices.place.dtype == np.int32
    dx = kernels.max_pool2d_backward(np.ones_like(y), indices, x_shape=x.shape)
    counts = np.zeros((2, 20 * 21, channels))
    for n, p, q, c in np.ndindex(where.shape):
        counts[n, where[n, p, q, c], c] += 1
    np.testing.assert_array_equal(dx, counts.reshape(x.shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average(rng, shape, window, count_include_pad):
    x = rng.standard_normal(shape).astype(np.float32)
    want = reference_average(x, count_include_pad, **window)
    y = kernels.avg_pool2d(x, **window, count_include_pad=count_include_pad, out=poison(want.shape))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    # the operation is linear: <dy, A x> = <A' dy, x>
    dy = rng.standard_normal(want.shape).astype(np.float32)
    dx = kernels.avg_pool2d_backward(
        dy, x_shape=shape, **window, count_include_pad=count_include_pad, out=poison(shape)
    )
    assert (dx.astype(np.float64) * x).sum() == pytest.approx((dy * want).sum(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_against_torch(rng, window, count_include_pad):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, 11, 9, 18)).astype(np.float32)
    leaf = torch_of(x, grad=True)
    want = torch.nn.functional.avg_pool2d(leaf, **window, count_include_pad=count_include_pad)
    y = kernels.avg_pool2d(x, **window, count_include_pad=count_include_pad)
    np.testing.assert_allclose(y, numpy_of(want), rtol=1e-5, atol=1e-6)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    want.backward(torch_of(dy))
    dx = kernels.avg_pool2d_backward(dy, x_shape=x.shape, **window, count_include_pad=count_include_pad)
    np.testing.assert_allclose(dx, numpy_of(leaf.grad), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "out"), [((13, 13), (6, 6)), ((2, 5), (6, 3)), ((12, 8), (4, 4)), ((7, 7), (1, 1))])
def test_adaptive_average(rng, size, out):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, *size, 21)).astype(np.float32)
    leaf = torch_of(x, grad=True)
    want = torch.nn.functional.adaptive_avg_pool2d(leaf, out)
    y = kernels.adaptive_avg_pool2d(x, out)
    np.testing.assert_allclose(y, numpy_of(want), rtol=1e-5, atol=1e-6)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    want.backward(torch_of(dy))
    dx = kernels.adaptive_avg_pool2d_backward(dy, x_shape=x.shape, out=poison(x.shape))
    np.testing.assert_allclose(dx, numpy_of(leaf.grad), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7, 7, 70), (2, 1, 1, 5), (2, 112, 96, 16)])
def test_global_average(rng, shape):
    x = (100 + rng.standard_normal(shape)).astype(np.float32)
    y = kernels.global_avg_pool2d(x, out=poison((shape[0], shape[3])))
    np.testing.assert_allclose(y, x.astype(np.float64).mean(axis=(1, 2)), rtol=1e-6)
    dx = kernels.global_avg_pool2d_backward(y, x_shape=shape, out=poison(shape))
    np.testing.assert_allclose(dx, np.broadcast_to(y[:, None, None] / (shape[1] * shape[2]), shape), rtol=1e-6)


def test_threads_change_no_bit(rng, with_threads):
    x = rng.standard_normal((3, 31, 30, 40)).astype(np.float32)

    def run():
        y, indices = kernels.max_pool2d(x, 3, stride=2, padding=1)
        means = kernels.avg_pool2d(x, 3, stride=2, padding=1)
        back = kernels.avg_pool2d_backward(means, 3, stride=2, padding=1, x_shape=x.shape)
        return y, indices.place, kernels.max_pool2d_backward(y, indices, x_shape=x.shape), means, back

    for a, b in zip(with_threads(1, run), with_threads(3, run), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_images():
    x = np.empty((0, 8, 8, 4), np.float32)
    y, indices = kernels.max_pool2d(x, 2)
    assert y.shape == (0, 4, 4, 4)
    assert kernels.max_pool2d_backward(y, indices, x_shape=x.shape).shape == x.shape
    assert kernels.avg_pool2d(x, 2).shape == (0, 4, 4, 4)
    assert kernels.global_avg_pool2d(x).shape == (0, 4)


def test_a_window_without_values_is_minus_infinity():
    y, indices = kernels.max_pool2d(np.ones((1, 1, 1, 20), np.float32), 2, stride=1, padding=1, dilation=2)
    assert (y == -np.inf).all()
    assert not kernels.max_pool2d_backward(np.ones_like(y), indices, x_shape=(1, 1, 1, 20)).any()


def test_errors():
    x = np.ones((1, 6, 6, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"max_pool2d: padding is \(\(3, 3\), \(3, 3\)\), expected less than the window of 3"
    ):
        kernels.max_pool2d(x, 3, padding=3)
    with pytest.raises(ValueError, match="avg_pool2d: x has a side of 6, padded 6, expected at least the window's 7"):
        kernels.avg_pool2d(x, 7)
    with pytest.raises(ValueError, match="max_pool2d: stride is 0, expected 1 or more"):
        kernels.max_pool2d(x, 2, stride=0)
    with pytest.raises(ValueError, match="global_avg_pool2d: x has 2 dimensions, expected 4"):
        kernels.global_avg_pool2d(x[0, 0])
    with pytest.raises(TypeError, match="max_pool2d: x has dtype float64, expected float32"):
        kernels.max_pool2d(x.astype(np.float64), 2)
    y, indices = kernels.max_pool2d(x, 2)
    with pytest.raises(ValueError, match=r"max_pool2d_backward: indices has shape \(1, 3, 3, 4\), expected"):
        kernels.max_pool2d_backward(y[:, :2], indices, x_shape=x.shape)
    with pytest.raises(
        TypeError, match=r"max_pool2d_backward: indices is a (ndarray|DeviceArray), expected the MaxPoolIndices"
    ):
        kernels.max_pool2d_backward(y, indices.place, x_shape=x.shape)
    with pytest.raises(ValueError, match=r"avg_pool2d_backward: dy has shape \(1, 3, 3, 4\), expected \(1, 2, 2, 4\)"):
        kernels.avg_pool2d_backward(y, 3, x_shape=x.shape)


@pytest.mark.parametrize("shape", [(2, 2, 9, 5), (1, 2, 2, 20), (2, 4, 2, 17)])
def test_ceil_mode_lets_the_only_window_pass_the_image(rng, shape):
    """As torch: a 3x3 window with stride 2 fits on two pixels."""
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(shape).astype(np.float32)
    window = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
    for name in ("max", "avg"):
        leaf = torch_of(x, grad=True)
        want = getattr(torch.nn.functional, f"{name}_pool2d")(leaf, **window)
        dy = rng.standard_normal(numpy_of(want).shape).astype(np.float32)
        want.backward(torch_of(dy))
        if name == "max":
            y, indices = kernels.max_pool2d(x, **window)
            dx = kernels.max_pool2d_backward(dy, indices, x_shape=shape)
        else:
            y = kernels.avg_pool2d(x, **window)
            dx = kernels.avg_pool2d_backward(dy, x_shape=shape, **window)
        np.testing.assert_allclose(y, numpy_of(want), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dx, numpy_of(leaf.grad), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="max_pool2d: x has a side of 1, padded 1, expected at least the window's 3"):
        kernels.max_pool2d(x[:, :1].copy(), **window)
