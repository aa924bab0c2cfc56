"""ReLU and its gradient."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")


def poison(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5, 7), (2, 64, 64, 17)])
def test_relu_and_its_gradient(rng, with_threads, shape):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    y = with_threads(1, lambda: kernels.relu(x, out=poison(shape)))
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0))
    np.testing.assert_array_equal(with_threads(3, lambda: kernels.relu(x)), y)
    dx = kernels.relu_backward(dy, y, out=poison(shape))
    np.testing.assert_array_equal(dx, np.where(x > 0, dy, 0))
    kernels.relu(x, out=x)
    np.testing.assert_array_equal(x, y)
    kernels.relu_backward(dy, y, out=dy)
    np.testing.assert_array_equal(dy, dx)


def test_special_values():
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45] * 9, np.float32)
    y = kernels.relu(x)
    np.testing.assert_array_equal(y, np.array([np.nan, np.inf, 0, 0, 1e-45] * 9, np.float32))
    np.testing.assert_array_equal(kernels.relu_backward(np.ones_like(x), y), [0, 1, 0, 0, 1] * 9)


def test_errors():
    x = np.ones(8, np.float32)
    with pytest.raises(TypeError, match="relu: x has dtype float64, expected float32"):
        kernels.relu(np.ones(3))
    with pytest.raises(ValueError, match="relu: out has 7 values, expected 8"):
        kernels.relu(x, out=np.ones(7, np.float32))
    with pytest.raises(ValueError, match="relu: out overlaps x"):
        kernels.relu(x[:6], out=x[2:])
    with pytest.raises(ValueError, match="relu_backward: dy has 7 values, y has 8"):
        kernels.relu_backward(x[:7], x)
    with pytest.raises(TypeError, match="relu: x is a list, expected a float32 array"):
        kernels.relu([1.0])
