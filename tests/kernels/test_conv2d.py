"""Convolution against a float64 loop written to be read, and against torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels
from tests.kernels.staged import HOST_BACKENDS

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True, scope="module", params=HOST_BACKENDS)
def backend(request):
    before = kernels.backend()
    kernels.use_backend(request.param)
    yield request.param
    kernels.use_backend(before)


def reference(x, weight, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    """conv2d in float64."""
    x, weight = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0))), weight.astype(np.float64)
    r, s, gc, k = weight.shape
    rows = (x.shape[1] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    columns = (x.shape[2] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], rows, columns, k))
    for i, j, g in itertools.product(range(r), range(s), range(groups)):
        top, left, out = i * dilation[0], j * dilation[1], slice(g * k // groups, (g + 1) * k // groups)
        taken = x[:, top : top + rows * stride[0] : stride[0], left : left + columns * stride[1] : stride[1]]
        y[..., out] += taken[:, :rows, :columns, g * gc : (g + 1) * gc] @ weight[i, j, :, out]
    return y


def poison(*shape):
    return np.full(shape, np.nan, np.float32)


def integers(rng, *shape):
    """Small integers: every sum is exact, whatever its order."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def bound(length):
    """Relative to the largest result: 2 sqrt(n) roundings in a sum of n, at least 16."""
    return EPS * max(16.0, 2.0 * length**0.5)


WINOGRAD = 1e-5  # relative to the largest result


def close(got, want, limit, floor=1e-30):
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    if want.size:
        assert np.abs(got - want).max() <= limit * max(np.abs(want).max(), floor)


def torch_gradients(x, weight, dy, **window):
    """y, dx, dweight by torch in float64, in our layouts."""
    torch = pytest.importorskip("torch")
    window = {**window}
    padding = window.pop("padding", ((0, 0), (0, 0)))
    tx = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).contiguous().requires_grad_()
    tw = torch.tensor(weight, dtype=torch.float64).permute(3, 2, 0, 1).contiguous().requires_grad_()
    padded = torch.nn.functional.pad(tx, (*padding[1], *padding[0]))
    y = torch.nn.functional.conv2d(padded, tw, **window)
    y.backward(torch.tensor(dy, dtype=torch.float64).permute(0, 3, 1, 2).contiguous())
    return (
        y.detach().permute(0, 2, 3, 1).numpy(),
        tx.grad.permute(0, 2, 3, 1).numpy(),
        tw.grad.permute(2, 3, 1, 0).numpy(),
    )


# n, h, w, c, r, s, k, stride, padding, dilation, groups: the models' own layers (smaller batches), then awkward ones
CASES = [
    (2, 32, 32, 3, 3, 3, 64, 1, 1, 1, 1),
    (2, 16, 16, 64, 3, 3, 64, 1, 1, 1, 1),
    (3, 8, 8, 128, 3, 3, 64, 1, 1, 1, 1),
    (5, 4, 4, 96, 3, 3, 128, 1, 1, 1, 1),
    (2, 7, 7, 64, 3, 3, 32, 1, 1, 1, 1),
    (1, 14, 14, 40, 3, 3, 48, 1, 1, 1, 1),
    (2, 16, 16, 32, 3, 3, 64, 2, 1, 1, 1),
    (2, 17, 15, 32, 3, 3, 24, 2, 1, 1, 1),
    (2, 16, 12, 64, 3, 3, 96, 2, 1, 1, 1),
    (3, 8, 8, 256, 3, 3, 160, 2, 1, 1, 1),
    (1, 23, 39, 40, 3, 3, 50, 2, ((1, 0), (0, 2)), 1, 1),
    (2, 16, 16, 32, 1, 1, 64, 2, 0, 1, 1),
    (2, 14, 14, 64, 1, 1, 96, 1, 0, 1, 1),
    (1, 40, 40, 3, 7, 7, 64, 2, 3, 1, 1),
    (1, 38, 41, 3, 11, 11, 64, 4, 2, 1, 1),
    (2, 28, 28, 16, 5, 5, 32, 1, 2, 1, 1),
    (1, 9, 31, 20, 5, 5, 40, 1, 2, 1, 1),
    (2, 6, 13, 17, 3, 5, 16, 1, ((1, 1), (2, 2)), 1, 1),
    (1, 9, 11, 48, 5, 5, 24, (2, 1), ((2, 2), (0, 3)), 1, 2),
    (1, 33, 35, 1, 3, 3, 16, 1, 1, 1, 1),
    (2, 12, 12, 24, 3, 3, 24, 1, 1, 1, 24),
    (2, 12, 11, 32, 3, 3, 48, 1, 1, 1, 4),
    (1, 10, 9, 6, 3, 3, 9, 1, 2, 2, 3),
    (1, 9, 9, 5, 3, 3, 7, 1, 1, 1, 1),
    (2, 6, 5, 17, 3, 2, 33, (2, 1), ((1, 0), (0, 2)), (1, 2), 1),
    (1, 13, 13, 8, 3, 3, 8, 3, ((0, 2), (2, 1)), 1, 1),
    (1, 1, 1, 20, 1, 1, 10, 1, 0, 1, 1),
    (1, 2, 2, 4, 5, 5, 4, 1, 4, 1, 1),
    (1, 64, 3, 16, 3, 3, 16, 1, 1, 1, 1),
    (1, 3, 70, 16, 3, 3, 16, 1, 1, 1, 1),
    (8, 56, 56, 16, 1, 1, 8, 1, 0, 1, 1),
    (3, 28, 28, 64, 1, 1, 2, 1, 0, 1, 1),
    (2, 13, 9, 1, 1, 1, 40, 1, 0, 1, 1),
    (1, 7, 5, 50, 1, 1, 1, 1, 0, 1, 1),
    (2, 11, 7, 37, 1, 1, 3, 1, 0, 1, 1),
    (3, 15, 13, 4, 1, 1, 37, 2, 0, 1, 1),
    (2, 9, 9, 33, 1, 1, 70, 1, 0, 1, 1),
    (3, 7, 7, 520, 1, 1, 310, 1, 0, 1, 1),
    (1, 6, 5, 1100, 1, 1, 90, 1, 0, 1, 1),
    (1, 6, 5, 90, 1, 1, 1100, 1, 0, 1, 1),
    (1, 2, 4, 1100, 1, 1, 500, 1, 0, 1, 1),
    (2, 9, 8, 20, 1, 1, 40, 2, 0, 1, 1),
    (2, 8, 9, 300, 1, 1, 300, 2, 0, 1, 1),
    (2, 11, 10, 6, 1, 1, 5, (4, 3), 0, 1, 1),
    (1, 1, 1, 1, 1, 1, 4, 1, ((0, 0), (0, 1)), 1, 1),
    (2, 5, 6, 8, 1, 1, 24, 2, ((0, 3), (0, 2)), 1, 1),
    (0, 8, 8, 16, 3, 3, 16, 1, 1, 1, 1),
]


def window_of(stride, padding, dilation, groups):
    pair = lambda v: v if isinstance(v, tuple) else (v, v)  # noqa: E731
    if not isinstance(padding, tuple):
        padding = ((padding, padding), (padding, padding))
    return {"stride": pair(stride), "padding": padding, "dilation": pair(dilation), "groups": groups}


def check_everything(rng, make, n, h, w, c, r, s, k, window, *, exact):
    """Forward and both gradients on outputs full of NaN."""
    x, weight, bias = make(rng, n, h, w, c), make(rng, r, s, c // window["groups"], k), make(rng, k)
    y = reference(x, weight, **window)
    dy = make(rng, *y.shape)
    _, dx, dweight = torch_gradients(x, weight, dy, **window)
    algo = "direct" if exact else "auto"
    got_y = kernels.conv2d(x, weight, bias, **window, algo=algo, out=poison(*y.shape))
    got_relu = kernels.conv2d(x, weight, bias, **window, algo=algo, relu=True, out=poison(*y.shape))
    got_dx = kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **window, algo=algo, out=poison(*x.shape))
    start = make(rng, *weight.shape)
    got_dweight = kernels.conv2d_backward_weight(
        dy, x, weight_shape=weight.shape, **window, algo=algo, out=start.copy()
    )
    np.testing.assert_array_equal(got_relu, np.where(got_y < 0, np.float32(0), got_y))
    if exact:
        np.testing.assert_array_equal(got_y, y + bias)
        np.testing.assert_array_equal(got_dx, dx)
        np.testing.assert_array_equal(got_dweight, start + dweight)
    else:
        close(got_y, y + bias, max(WINOGRAD, bound(r * s * weight.shape[2])))
        close(got_dx, dx, max(WINOGRAD, bound(r * s * k // window["groups"])))
        close(got_dweight, start + dweight, max(2 * WINOGRAD, bound(n * y.shape[1] * y.shape[2])))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_are_exact(case):
    *sizes, stride, padding, dilation, groups = case
    rng = np.random.default_rng(0)
    check_everything(rng, integers, *sizes, window_of(stride, padding, dilation, groups), exact=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reals(case):
    *sizes, stride, padding, dilation, groups = case
    rng = np.random.default_rng(1)
    reals = lambda rng, *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    check_everything(rng, reals, *sizes, window_of(stride, padding, dilation, groups), exact=False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape(backend, data):
    draw = lambda low, high, name: data.draw(st.integers(low, high), name)  # noqa: E731
    n, groups = draw(0, 3, "n"), draw(1, 3, "groups")
    c, k = groups * draw(1, 20, "c"), groups * draw(1, 36, "k")
    r, s = draw(1, 5, "r"), draw(1, 5, "s")
    stride, dilation = (draw(1, 3, "sh"), draw(1, 3, "sw")), (draw(1, 2, "dh"), draw(1, 2, "dw"))
    padding = ((draw(0, 3, "top"), draw(0, 3, "bottom")), (draw(0, 3, "left"), draw(0, 3, "right")))
    h = draw(max(1, dilation[0] * (r - 1) + 1 - sum(padding[0])), 24, "h")
    w = draw(max(1, dilation[1] * (s - 1) + 1 - sum(padding[1])), 24, "w")
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check_everything(np.random.default_rng(n), integers, n, h, w, c, r, s, k, window, exact=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_transposed_any_shape(backend, data):
    torch = pytest.importorskip("torch")
    draw = lambda low, high, name: data.draw(st.integers(low, high), name)  # noqa: E731
    groups, n = draw(1, 2, "groups"), draw(1, 2, "n")
    c, gk, r, s = groups * draw(1, 9, "c"), draw(1, 18, "k"), draw(1, 4, "r"), draw(1, 4, "s")
    h, w = draw(1, 9, "h"), draw(1, 9, "w")
    stride, dilation = (draw(1, 3, "sh"), draw(1, 3, "sw")), (draw(1, 2, "dh"), draw(1, 2, "dw"))
    more = tuple(draw(0, max(a, b) - 1, "more") for a, b in zip(stride, dilation, strict=True))
    spare = [
        (size - 1) * a + b * (t - 1) + e
        for size, a, b, t, e in zip((h, w), stride, dilation, (r, s), more, strict=True)
    ]
    padding = tuple(min(draw(0, 2, "padding"), extent // 2) for extent in spare)
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "output_padding": more}
    rng = np.random.default_rng(h)
    x, weight, bias = integers(rng, n, h, w, c), integers(rng, r, s, gk, c), integers(rng, gk * groups)
    tx = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).contiguous().requires_grad_()
    tw = torch.tensor(weight, dtype=torch.float64).permute(3, 2, 0, 1).contiguous().requires_grad_()
    ty = torch.nn.functional.conv_transpose2d(tx, tw, torch.tensor(bias, dtype=torch.float64), **window)
    y = kernels.conv_transpose2d(x, weight, bias, **window, algo="direct")
    np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
    dy = integers(rng, *y.shape)
    ty.backward(torch.tensor(dy, dtype=torch.float64).permute(0, 3, 1, 2).contiguous())
    dx = kernels.conv_transpose2d_backward_data(dy, weight, x_shape=x.shape, **window, algo="direct")
    dweight = kernels.conv_transpose2d_backward_weight(dy, x, weight_shape=weight.shape, **window, algo="direct")
    np.testing.assert_array_equal(dx, tx.grad.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(dweight, tw.grad.permute(2, 3, 1, 0))


def test_a_strided_point_leaves_the_bias_between():
    rng = np.random.default_rng(7)
    x, weight, bias = integers(rng, 2, 3, 4, 20), integers(rng, 1, 1, 5, 20), integers(rng, 5)
    window = {"stride": (3, 2), "output_padding": (2, 1)}
    y = kernels.conv_transpose2d(x, weight, bias, **window, out=poison(2, 9, 8, 5))
    want = np.zeros((2, 9, 8, 5), np.float32)
    want[:, ::3, ::2] = x @ weight[0, 0].T
    np.testing.assert_array_equal(y, want + bias)


def test_true_convolution_is_scipys():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(2)
    image, kernel = integers(rng, 1, 9, 8, 1), integers(rng, 3, 4, 1, 1)
    full = kernels.convolve2d(image, kernel, padding=(2, 3))
    np.testing.assert_array_equal(full[0, ..., 0], signal.convolve2d(image[0, ..., 0], kernel[..., 0, 0]))


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (100, 3), (70000, 17), (4, 9, 11, 64)])
def test_sum_channels(shape):
    rng = np.random.default_rng(3)
    dy, start = integers(rng, *shape), integers(rng, shape[-1])
    got = kernels.sum_channels(dy, out=start.copy())
    np.testing.assert_array_equal(got, start + dy.reshape(-1, shape[-1]).sum(0))
    np.testing.assert_array_equal(kernels.conv2d_backward_bias(dy), dy.reshape(-1, shape[-1]).sum(0))


def test_threads_do_not_change_results():
    rng = np.random.default_rng(4)
    before = kernels.threads()
    try:
        for n, h, c, k, r, stride in [
            (3, 15, 24, 40, 3, 1),
            (5, 7, 256, 80, 3, 1),
            (1, 8, 64, 96, 3, 2),
            (33, 8, 64, 48, 3, 2),
            (3, 8, 160, 192, 3, 2),
            (4, 4, 32, 64, 1, 1),
            (5, 9, 48, 290, 1, 1),
            (3, 9, 300, 280, 1, 2),
            (1, 5, 1100, 310, 1, 1),
            (3, 17, 70, 3, 1, 1),
            (1, 30, 3, 24, 7, 2),
            (3, 12, 32, 48, 5, 1),
        ]:
            x, weight = rng.standard_normal((n, h, h, c), np.float32), rng.standard_normal((r, r, c, k), np.float32)
            results = []
            for threads in (1, 2, 3):
                kernels.set_threads(threads)
                y = kernels.conv2d(x, weight, stride=stride, padding=r // 2)
                window = {"stride": stride, "padding": r // 2}
                dx = kernels.conv2d_backward_data(y, weight, x_shape=x.shape, **window)
                dweight = kernels.conv2d_backward_weight(y, x, weight_shape=weight.shape, **window)
                results.append((y, dx, dweight, kernels.sum_channels(y)))
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    np.testing.assert_array_equal(a, b)
    finally:
        kernels.set_threads(before)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_winograd_any_shape(backend, data):
    draw = lambda low, high, name: data.draw(st.integers(low, high), name)  # noqa: E731
    r = data.draw(st.sampled_from([3, 5]), "r")
    n, c, k, h, w = draw(0, 3, "n"), draw(1, 90, "c"), draw(1, 70, "k"), draw(r, 15, "h"), draw(r, 15, "w")
    padding = ((draw(0, 3, "top"), draw(0, 3, "bottom")), (draw(0, 3, "left"), draw(0, 3, "right")))
    rng = np.random.default_rng(c)
    x, weight = rng.standard_normal((n, h, w, c), np.float32), rng.standard_normal((r, r, c, k), np.float32)
    bias = rng.standard_normal(k, np.float32)
    y = reference(x, weight, padding=padding) + bias
    dy = rng.standard_normal(y.shape, np.float32)
    _, dx, _ = torch_gradients(x, weight, dy, padding=padding)
    kw = {"padding": padding, "algo": "winograd"}
    # of few results all may happen to be small: the bound is for the size that such sums have
    size, dsize = (r * r * c) ** 0.5, (r * r * k) ** 0.5
    close(kernels.conv2d(x, weight, bias, **kw, out=poison(*y.shape)), y, WINOGRAD, size)
    close(kernels.conv2d(x, weight, bias, **kw, relu=True, out=poison(*y.shape)), np.maximum(y, 0), WINOGRAD, size)
    close(kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **kw, out=poison(*x.shape)), dx, WINOGRAD, dsize)


@pytest.mark.parametrize(
    ("c", "k", "size", "r"), [(64, 64, 8, 3), (256, 96, 4, 3), (128, 320, 7, 3), (16, 32, 28, 5), (48, 128, 14, 5)]
)
def test_winograd_error_on_real_layers(c, k, size, r):
    rng = np.random.default_rng(c)
    x = np.maximum(rng.standard_normal((4, size, size, c), np.float32), 0)
    weight = (rng.standard_normal((r, r, c, k)) * (2 / (r * r * c)) ** 0.5).astype(np.float32)
    y = reference(x, weight, padding=((r // 2, r // 2), (r // 2, r // 2)))
    got = kernels.conv2d(x, weight, padding=r // 2, algo="winograd")
    close(got, y, WINOGRAD)
    assert np.sqrt(np.mean((got - y) ** 2) / np.mean(y**2)) < 1.5e-6


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_stride2_any_shape(backend, data):
    draw = lambda low, high, name: data.draw(st.integers(low, high), name)  # noqa: E731
    n, c, k, oh, ow = draw(0, 3, "n"), draw(32, 90, "c"), draw(32, 70, "k"), 2 * draw(1, 5, "oh"), 2 * draw(1, 5, "ow")
    padding = ((draw(0, 3, "top"), draw(0, 3, "bottom")), (draw(0, 3, "left"), draw(0, 3, "right")))
    h, w = (max(1, 2 * o + draw(1, 2, "more") - sum(p)) for o, p in zip((oh, ow), padding, strict=True))
    rng = np.random.default_rng(c)
    x, weight, bias = integers(rng, n, h, w, c), integers(rng, 3, 3, c, k), integers(rng, k)
    kw = {"stride": (2, 2), "padding": padding}
    y = reference(x, weight, **kw) + bias
    dy = integers(rng, *y.shape)
    _, dx, _ = torch_gradients(x, weight, dy, **kw)
    # the fast algorithm only adds: integers are exact
    np.testing.assert_array_equal(kernels.conv2d(x, weight, bias, **kw, out=poison(*y.shape)), y)
    np.testing.assert_array_equal(
        kernels.conv2d(x, weight, bias, **kw, relu=True, out=poison(*y.shape)), np.maximum(y, 0)
    )
    got = kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **kw, out=poison(*x.shape))
    np.testing.assert_array_equal(got, dx)


SAMPLES = [
    (64, 64, 3, 1, 8),
    (32, 48, 3, 2, 9),
    (64, 96, 3, 2, 8),
    (256, 128, 3, 2, 8),
    (16, 24, 1, 1, 5),
    (300, 310, 1, 1, 7),
    (1030, 20, 1, 1, 3),
    (40, 2, 1, 2, 9),
    (3, 16, 5, 1, 8),
    (32, 48, 5, 1, 8),
]


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_a_sample_does_not_depend_on_its_batch(case):
    c, k, r, stride, size = case
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((9, size, size, c), np.float32), rng.standard_normal((r, r, c, k), np.float32)
    window = {"stride": stride, "padding": r // 2}
    y = kernels.conv2d(x, weight, **window)
    dx = kernels.conv2d_backward_data(y, weight, x_shape=x.shape, **window)
    for part in (slice(0, 1), slice(4, 9)):
        np.testing.assert_array_equal(kernels.conv2d(x[part], weight, **window), y[part])
        got = kernels.conv2d_backward_data(y[part], weight, x_shape=x[part].shape, **window)
        np.testing.assert_array_equal(got, dx[part])


def test_direct_is_a_choice():
    rng = np.random.default_rng(5)
    x, weight = integers(rng, 2, 12, 12, 32), integers(rng, 3, 3, 32, 32)
    y = kernels.conv2d(x, weight, padding=1, algo="direct", out=poison(2, 12, 12, 32))
    np.testing.assert_array_equal(y, reference(x, weight, padding=((1, 1), (1, 1))))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "weight takes 4 channels, x has 3", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 4, 2))),
        (ValueError, "expected at least 7 x 7", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(7, 7, 3, 2))),
        (TypeError, "x has dtype float64", lambda: kernels.conv2d(zeros(1, 5, 5, 3, dtype=float), zeros(3, 3, 3, 2))),
        (TypeError, "not C-contiguous", lambda: kernels.conv2d(zeros(3, 5, 5, 1).T, zeros(3, 3, 3, 2))),
        (ValueError, "x has 3 dimensions", lambda: kernels.conv2d(zeros(5, 5, 3), zeros(3, 3, 3, 2))),
        (ValueError, "stride is 0", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=0)),
        (TypeError, "stride is 1.5", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=1.5)),
        (ValueError, "padding is -1", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), padding=-1)),
        (ValueError, "multiple of groups = 2", lambda: kernels.conv2d(zeros(1, 5, 5, 4), zeros(3, 3, 2, 3), groups=2)),
        (ValueError, "algo is 'fast'", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), algo="fast")),
        (
            ValueError,
            "expected a 3 x 3 or 5 x 5 filter",
            lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=2, algo="winograd"),
        ),
        (ValueError, "bias has shape (3,)", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), zeros(3))),
        (
            ValueError,
            "out has shape (1, 5, 5, 2), expected (1, 3, 3, 2)",
            lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), out=zeros(1, 5, 5, 2)),
        ),
        (
            ValueError,
            "dy has shape (1, 4, 4, 2), expected (1, 3, 3, 2)",
            lambda: kernels.conv2d_backward_data(zeros(1, 4, 4, 2), zeros(3, 3, 3, 2), x_shape=(1, 5, 5, 3)),
        ),
        (
            ValueError,
            "output_padding is (1, 1)",
            lambda: kernels.conv_transpose2d(zeros(1, 5, 5, 3), zeros(2, 2, 4, 3), output_padding=1),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_argument(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_out_may_not_overlap_x():
    x = zeros(1, 5, 5, 4)
    with pytest.raises(ValueError, match="out overlaps x"):
        kernels.conv2d(x, zeros(1, 1, 4, 4), out=x)
