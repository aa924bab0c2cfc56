"""What the tests of convolutions share: a float64 loop written to be read, torch's gradients, numbers and bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medmpi import kernels

EPS = float(np.finfo(np.float32).eps)


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
    before = make(rng, *x.shape)
    got_sum = kernels.conv2d_backward_data(
        dy, weight, x_shape=x.shape, **window, algo=algo, add=before, out=poison(*x.shape)
    )
    in_place = before.copy()
    kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **window, algo=algo, add=in_place, out=in_place)
    np.testing.assert_array_equal(in_place, got_sum)
    start = make(rng, *weight.shape)
    got_dweight = kernels.conv2d_backward_weight(
        dy, x, weight_shape=weight.shape, **window, algo=algo, out=start.copy()
    )
    np.testing.assert_array_equal(got_relu, np.where(got_y < 0, np.float32(0), got_y))
    if exact:
        np.testing.assert_array_equal(got_y, y + bias)
        np.testing.assert_array_equal(got_dx, dx)
        np.testing.assert_array_equal(got_sum, before + dx)
        np.testing.assert_array_equal(got_dweight, start + dweight)
    else:
        close(got_y, y + bias, max(WINOGRAD, bound(r * s * weight.shape[2])))
        close(got_dx, dx, max(WINOGRAD, bound(r * s * k // window["groups"])))
        close(got_sum, before + dx, max(WINOGRAD, bound(r * s * k // window["groups"])))
        close(got_dweight, start + dweight, max(2 * WINOGRAD, bound(n * y.shape[1] * y.shape[2])))
