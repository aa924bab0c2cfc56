"""Rows and columns of the input that no window reaches have a gradient of zero."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels as K

LONG_WHEN_EMULATED = True


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 48])
@pytest.mark.parametrize(("size", "stride"), [(1, 2), (1, 3), (2, 2), (2, 3), (3, 3), (3, 4)])
def test_what_no_window_reaches_is_zero(backend: str, channels: int, size: int, stride: int) -> None:
    weight = np.ones((size, size, channels, 8), np.float32)
    for outputs in (1, 3, 8, 16, 32, 64):  # whole vectors of outputs, whatever the instruction set
        for beyond in range(stride):
            width = (outputs - 1) * stride + size + beyond
            dx = np.full((1, size + beyond, width, channels), np.nan, np.float32)
            dy = np.ones((1, 1, outputs, 8), np.float32)
            K.conv2d_backward_data(dy, weight, x_shape=dx.shape, stride=stride, out=dx)
            reached = np.zeros(width, bool)
            for j in range(outputs):
                reached[j * stride : j * stride + size] = True
            assert np.array_equal(dx[0, 0] != 0, np.repeat(reached[:, None], channels, 1)), (outputs, beyond)
            assert np.isfinite(dx).all(), (outputs, beyond)
            assert not dx[0, size:].any(), (outputs, beyond)
