"""The fully connected layer against float64 and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmpi import kernels

LONG_WHEN_EMULATED = True

# the streamed path (M <= 4), tails of every tile, more than one block of depth, of rows and of columns
SHAPES = [
    (1, 1, 1),
    (1, 300, 530),
    (2, 17, 33),
    (3, 64, 1030),
    (4, 259, 16),
    (5, 5, 5),
    (32, 512, 10),
    (128, 512, 1000),
    (449, 257, 31),
    (15, 600, 129),
]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = kernels.threads()
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(before)


def poisoned(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, np.nan, np.float32)


def operands(
    m: int, c: int, k: int, draw: Callable[..., NDArray[np.float64]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """x, weight, bias, dy."""
    shapes: list[tuple[int, ...]] = [(m, c), (c, k), (k,), (m, k)]
    x, weight, bias, dy = (draw(size=shape).astype(np.float32) for shape in shapes)
    return x, weight, bias, dy


def check_exact(m: int, c: int, k: int, seed: int = 0) -> None:
    """Small integers: every sum is exact in float32, so every order of summation gives the same bits."""
    rng = np.random.default_rng(seed)
    x, weight, bias, dy = operands(m, c, k, lambda size: rng.integers(-3, 4, size))
    np.testing.assert_array_equal(kernels.linear(x, weight, bias, out=poisoned(m, k)), x @ weight + bias)
    np.testing.assert_array_equal(kernels.linear(x, weight, out=poisoned(m, k)), x @ weight)
    np.testing.assert_array_equal(kernels.linear_backward_data(dy, weight, out=poisoned(m, c)), dy @ weight.T)
    np.testing.assert_array_equal(kernels.linear_backward_weight(dy, x, out=weight.copy()), weight + x.T @ dy)
    np.testing.assert_array_equal(kernels.linear_backward_weight(dy, x), x.T @ dy)
    np.testing.assert_array_equal(kernels.linear_backward_bias(dy, out=bias.copy()), bias + dy.sum(0))
    np.testing.assert_array_equal(kernels.linear_backward_bias(dy), dy.sum(0))


@pytest.mark.parametrize(("m", "c", "k"), SHAPES)
@pytest.mark.usefixtures("backend", "threads")
def test_integers_are_exact(m: int, c: int, k: int) -> None:
    check_exact(m, c, k)


@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
@pytest.mark.usefixtures("backend")
def test_any_shape(m: int, c: int, k: int, seed: int) -> None:
    check_exact(m, c, k, seed)


@pytest.mark.parametrize(("m", "c", "k"), [(1, 9216, 4096), (128, 512, 1000), (3000, 40, 50)])
@pytest.mark.usefixtures("backend")
def test_accuracy_against_float64(m: int, c: int, k: int) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias, dy = operands(m, c, k, rng.standard_normal)
    x64, w64, b64, dy64 = (a.astype(np.float64) for a in (x, weight, bias, dy))

    def worst(ours: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
        return float(np.abs(ours - exact).max() / np.abs(exact).max())

    assert worst(kernels.linear(x, weight, bias), x64 @ w64 + b64) < 1e-6
    assert worst(kernels.linear_backward_data(dy, weight), dy64 @ w64.T) < 1e-6
    assert worst(kernels.linear_backward_weight(dy, x), x64.T @ dy64) < 1e-6
    assert worst(kernels.linear_backward_bias(dy), dy64.sum(0)) < 1e-6


@pytest.mark.parametrize(("c", "k"), [(512, 3), (2048, 10), (700, 1030), (16, 259), (1, 600)])
@pytest.mark.usefixtures("backend")
def test_a_sample_has_the_same_bits_in_every_batch(c: int, k: int) -> None:
    x, weight, bias, dy = operands(7, c, k, np.random.default_rng(3).standard_normal)
    y, dx = kernels.linear(x, weight, bias), kernels.linear_backward_data(dy, weight)
    for m in range(1, 7):
        np.testing.assert_array_equal(kernels.linear(x[:m], weight, bias), y[:m])
        np.testing.assert_array_equal(kernels.linear_backward_data(dy[:m], weight), dx[:m])


@pytest.mark.parametrize(("m", "c", "k"), SHAPES)
@pytest.mark.usefixtures("backend")
def test_thread_count_changes_no_bit(m: int, c: int, k: int) -> None:
    rng = np.random.default_rng(2)
    x, weight, bias, dy = operands(m, c, k, rng.standard_normal)
    before = kernels.threads()
    results = []
    for count in (1, 2, 3):
        kernels.set_threads(count)
        results.append(
            (
                kernels.linear(x, weight, bias),
                kernels.linear_backward_data(dy, weight),
                kernels.linear_backward_weight(dy, x),
                kernels.linear_backward_bias(dy),
            )
        )
    kernels.set_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_gradients_agree_with_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, weight, bias, dy = operands(20, 35, 45, rng.standard_normal)
    tx, tw, tb = (torch.from_numpy(a.copy()).requires_grad_() for a in (x, weight.T.copy(), bias))
    y = torch.nn.functional.linear(tx, tw, tb)
    y.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(kernels.linear(x, weight, bias), y.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(kernels.linear_backward_data(dy, weight), tx.grad.numpy(), atol=2e-5)
    np.testing.assert_allclose(kernels.linear_backward_weight(dy, x), tw.grad.numpy().T, atol=2e-5)
    np.testing.assert_allclose(kernels.linear_backward_bias(dy), tb.grad.numpy(), atol=2e-5)


@pytest.mark.usefixtures("backend")
def test_empty_batch_leaves_parameter_gradients_alone() -> None:
    x, dy = np.zeros((0, 7), np.float32), np.zeros((0, 9), np.float32)
    weight = np.ones((7, 9), np.float32)
    assert kernels.linear(x, weight).shape == (0, 9)
    assert kernels.linear_backward_data(dy, weight).shape == (0, 7)
    np.testing.assert_array_equal(kernels.linear_backward_weight(dy, x, out=weight.copy()), weight)
    np.testing.assert_array_equal(kernels.linear_backward_bias(dy, out=np.full(9, 2, np.float32)), 2)


def test_no_inputs_gives_the_bias() -> None:
    y = kernels.linear(np.zeros((6, 0), np.float32), np.zeros((0, 3), np.float32), np.arange(3, dtype=np.float32))
    np.testing.assert_array_equal(y, np.tile(np.arange(3, dtype=np.float32), (6, 1)))


def test_errors_name_the_function_and_what_is_wrong() -> None:
    x, weight = np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"linear: weight takes 4 channels, x has 3"):
        kernels.linear(x, weight)
    with pytest.raises(ValueError, match=r"linear: x has 1 dimensions, expected 2"):
        kernels.linear(np.zeros(3, np.float32), weight)
    with pytest.raises(TypeError, match=r"linear: x has dtype float64"):
        kernels.linear(np.zeros((2, 4)), weight)
    with pytest.raises(ValueError, match=r"linear_backward_data: dy has 3 channels, weight gives 5"):
        kernels.linear_backward_data(x, weight)
    with pytest.raises(ValueError, match=r"linear_backward_weight: x has 4 rows, dy has 2"):
        kernels.linear_backward_weight(x, weight)
    square = np.zeros((5, 5), np.float32)
    with pytest.raises(ValueError, match=r"linear: out overlaps x"):
        kernels.linear(square, square.copy(), out=square)
