"""Depthwise convolution: one filter per channel, against float64 and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmpi import kernels

LONG_WHEN_EMULATED = True

Array = NDArray[np.float32]

# n, h, w, c, filter, multiplier, stride, padding, dilation: full and partial vectors of channels, odd and even
# numbers of rows, every padding of the 3x3 walks, more than one part of rows, a batch too
# large for the caches, then the general kernels
CASES: list[tuple[int, ...]] = [
    (2, 22, 22, 32, 3, 1, 1, 1, 1),
    (3, 7, 7, 128, 3, 1, 1, 1, 1),
    (2, 8, 5, 17, 3, 1, 1, 1, 1),
    (2, 35, 9, 5, 3, 1, 1, 0, 1),
    (1, 4, 4, 48, 3, 1, 1, 2, 1),
    (1, 3, 3, 16, 3, 1, 1, 0, 1),
    (1, 1, 1, 20, 3, 1, 1, 1, 1),
    (2, 2, 3, 7, 3, 1, 1, 3, 1),
    (2, 17, 18, 33, 3, 1, 2, 1, 1),
    (2, 36, 35, 16, 3, 1, 2, 1, 1),
    (2, 14, 14, 48, 3, 1, 2, 1, 1),
    (3, 8, 9, 20, 3, 1, 2, 0, 1),
    (2, 7, 6, 18, 3, 1, 2, 2, 1),
    (1, 3, 2, 33, 3, 1, 2, 3, 1),
    (1, 1, 1, 5, 3, 1, 2, 1, 1),
    (2, 2, 1, 40, 3, 1, 2, 4, 1),
    (1, 41, 52, 512, 3, 1, 2, 1, 1),
    (2, 11, 12, 16, 3, 1, 1, 2, 2),
    (2, 12, 11, 19, 5, 1, 1, 2, 1),
    (2, 9, 9, 6, 2, 1, 3, 0, 1),
    (2, 9, 8, 6, 3, 2, 1, 1, 1),
    (2, 9, 8, 5, 3, 3, 2, 1, 1),
    (0, 6, 6, 32, 3, 1, 1, 1, 1),
]


def arguments(case: tuple[int, ...]) -> dict[str, Any]:
    return {"stride": case[6], "padding": case[7], "dilation": case[8], "groups": case[3]}


def operands(case: tuple[int, ...], draw: Any) -> tuple[Array, Array, Array, Array]:
    """x, weight, bias, dy."""
    n, h, w, c, r, multiplier, stride, pad, dilation = case
    size = [(extent + 2 * pad - dilation * (r - 1) - 1) // stride + 1 for extent in (h, w)]
    k = c * multiplier
    x, weight, bias, dy = (draw(s).astype(np.float32) for s in ((n, h, w, c), (r, r, 1, k), (k,), (n, *size, k)))
    return x, weight, bias, dy


def reference(
    case: tuple[int, ...], x: Array, weight: Array, dy: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """y without bias, dx and dweight in float64."""
    n, h, w, c, r, multiplier, stride, pad, dilation = case
    rows, columns = dy.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    dpadded, y, dweight = np.zeros_like(padded), np.zeros(dy.shape), np.zeros(weight.shape)
    for i in range(r):
        for j in range(r):
            window = (
                slice(None),
                slice(i * dilation, i * dilation + (rows - 1) * stride + 1, stride),
                slice(j * dilation, j * dilation + (columns - 1) * stride + 1, stride),
            )
            seen = np.repeat(padded[window], multiplier, axis=-1)
            y += seen * weight[i, j, 0]
            dweight[i, j, 0] = (seen * dy).sum((0, 1, 2))
            dpadded[window] += (
                (dy.astype(np.float64) * weight[i, j, 0]).reshape(n, rows, columns, c, multiplier).sum(-1)
            )
    return y, dpadded[:, pad : pad + h, pad : pad + w], dweight


def check_exact(case: tuple[int, ...], seed: int = 0) -> None:
    """Small integers: every sum is exact in float32, so every order of summation gives the same bits."""
    rng = np.random.default_rng(seed)
    x, weight, bias, dy = operands(case, lambda shape: rng.integers(-3, 4, shape))
    y, dx, dweight = reference(case, x, weight, dy)
    args = arguments(case)
    nan = [np.full(shape, np.nan, np.float32) for shape in (y.shape, y.shape, x.shape)]
    np.testing.assert_array_equal(kernels.conv2d(x, weight, out=nan[0], **args), y)
    np.testing.assert_array_equal(kernels.conv2d(x, weight, bias, out=nan[1], **args), y + bias)
    np.testing.assert_array_equal(kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, out=nan[2], **args), dx)
    np.testing.assert_array_equal(kernels.conv2d_backward_weight(dy, x, weight_shape=weight.shape, **args), dweight)
    added = kernels.conv2d_backward_weight(dy, x, weight_shape=weight.shape, out=weight.copy(), **args)
    np.testing.assert_array_equal(added, weight + dweight)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("backend")
def test_integers_are_exact(case: tuple[int, ...], threads: int, with_threads: Any) -> None:
    with_threads(threads, lambda: check_exact(case))


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
@pytest.mark.usefixtures("backend")
def test_any_shape(data: st.DataObject, seed: int) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    r, dilation = number(1, 4), number(1, 2)
    reach = dilation * (r - 1)
    h, w, c = reach + number(1, 12), reach + number(1, 12), number(2, 40)
    check_exact((number(0, 3), h, w, c, r, number(1, 2), number(1, 3), number(0, 3), dilation), seed)


@pytest.mark.parametrize("case", [case for case in CASES if case[0]], ids=str)
@pytest.mark.usefixtures("backend")
def test_thread_count_changes_no_bit(case: tuple[int, ...], with_threads: Any) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias, dy = operands(case, rng.standard_normal)
    args = arguments(case)

    def compute() -> tuple[Array, ...]:
        return (
            kernels.conv2d(x, weight, bias, **args),
            kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **args),
            kernels.conv2d_backward_weight(dy, x, weight_shape=weight.shape, **args),
        )

    one = with_threads(1, compute)
    for threads in (2, 3):
        for a, b in zip(one, with_threads(threads, compute), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("backend")
def test_agrees_with_torch_and_float64() -> None:
    torch = pytest.importorskip("torch")
    case = (8, 32, 32, 64, 3, 1, 1, 1, 1)
    rng = np.random.default_rng(2)
    x, weight, bias, dy = operands(case, rng.standard_normal)
    args = arguments(case)
    tx = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2).contiguous().requires_grad_()
    tw = torch.from_numpy(weight.astype(np.float64)).permute(3, 2, 0, 1).contiguous().requires_grad_()
    ty = torch.nn.functional.conv2d(tx, tw, torch.from_numpy(bias.astype(np.float64)), **args)
    ty.backward(torch.from_numpy(dy.astype(np.float64)).permute(0, 3, 1, 2).contiguous())

    def worst(ours: Array, exact: NDArray[np.float64]) -> float:
        return float(np.abs(ours - exact).max() / np.abs(exact).max())

    y = ty.detach().permute(0, 2, 3, 1).numpy()
    assert worst(kernels.conv2d(x, weight, bias, **args), y) < 1e-6
    dx = kernels.conv2d_backward_data(dy, weight, x_shape=x.shape, **args)
    assert worst(dx, tx.grad.permute(0, 2, 3, 1).numpy()) < 1e-6
    dweight = kernels.conv2d_backward_weight(dy, x, weight_shape=weight.shape, **args)
    assert worst(dweight, tw.grad.permute(2, 3, 1, 0).numpy()) < 1e-6
