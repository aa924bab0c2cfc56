"""resize and its gradient against torch, and the gradient as the transpose of the forward map."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels as K

CASES = [
    ((2, 5, 7, 3), (10, 14)),
    ((1, 8, 8, 16), (3, 5)),
    ((3, 1, 4, 1), (2, 9)),
    ((0, 4, 4, 2), (8, 8)),
    ((2, 6, 6, 33), (6, 6)),
]
MODES = [("nearest", False), ("bilinear", False), ("bilinear", True)]


@pytest.mark.parametrize(("mode", "align"), MODES)
@pytest.mark.parametrize(("shape", "size"), CASES)
def test_equals_torch(backend, shape, size, mode, align):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if not x.size:
        assert K.resize(x, size, mode=mode).shape == (0, *size, shape[3])
        assert K.resize_backward(np.zeros((0, *size, shape[3]), np.float32), x_shape=shape, mode=mode).shape == shape
        return
    tx = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    ty = torch.nn.functional.interpolate(tx, size=size, mode=mode, align_corners=align if mode == "bilinear" else None)
    dy = np.random.default_rng(1).standard_normal((shape[0], *size, shape[3])).astype(np.float32)
    ty.backward(torch.from_numpy(dy).permute(0, 3, 1, 2))
    y = K.resize(x, size, mode=mode, align_corners=align, out=np.full((shape[0], *size, shape[3]), np.nan, np.float32))
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1).numpy(), atol=2e-6)
    dx = K.resize_backward(dy, x_shape=shape, mode=mode, align_corners=align, out=np.full(shape, np.nan, np.float32))
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("mode", "align"), MODES)
def test_gradient_is_the_transpose(mode, align):
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((2, 4, 5, 3)).astype(np.float32), rng.standard_normal((2, 9, 7, 3)).astype(np.float32)
    forward = np.vdot(K.resize(x, (9, 7), mode=mode, align_corners=align).astype(np.float64), dy)
    backward = np.vdot(K.resize_backward(dy, x_shape=x.shape, mode=mode, align_corners=align).astype(np.float64), x)
    assert abs(forward - backward) < 1e-4


def test_errors():
    x = np.zeros((1, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match="mode is 'cubic', expected nearest or bilinear"):
        K.resize(x, 8, mode="cubic")
    with pytest.raises(ValueError, match="resize: size is 0, expected 1 or more"):
        K.resize(x, (0, 3))
    with pytest.raises(ValueError, match="x has 3 dimensions"):
        K.resize(x[0], 8)
    with pytest.raises(TypeError, match="dtype float64"):
        K.resize(x.astype(np.float64), 8)
