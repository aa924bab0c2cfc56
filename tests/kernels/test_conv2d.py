"""Convolution against a float64 loop written to be read, and against torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels
from tests.kernels.convolutions import (
    WINOGRAD,
    check_everything,
    close,
    integers,
    poison,
    reference,
    torch_gradients,
    window_of,
)
from tests.kernels.staged import ON_HOST_BACKENDS

pytestmark = ON_HOST_BACKENDS


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
                dx = kernels.conv2d_backward_data(y, weight, x_shape=x.shape, add=x, **window)
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
