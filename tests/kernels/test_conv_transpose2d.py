"""Transposed convolution against torch, true convolution against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels
from tests.kernels.convolutions import (
    integers,
    poison,
)
from tests.kernels.staged import ON_HOST_BACKENDS

pytestmark = ON_HOST_BACKENDS


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
