"""uint8 pixels to normalised float32 (S0 eq. 1 with its parentheses: (x - mean) / std)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels

from .source import Images


def normalise(images: Images, mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(images / 255 - mean) / std`` per channel, float32 (n, h, w, c) in pooled memory. ``std`` is never 0."""
    n, h, w, c = images.shape
    out: NDArray[np.float32] = kernels.empty(images.shape)
    # One row of w * c values at a time, so that the inner loops are long although a pixel has only c values.
    scale = np.tile((1.0 / (255.0 * std.astype(np.float64))).astype(np.float32), w)
    shift = np.tile((mean.astype(np.float64) / std.astype(np.float64)).astype(np.float32), w)
    rows, wide = images.reshape(n * h, w * c), out.reshape(n * h, w * c)
    np.multiply(rows, scale, out=wide, dtype=np.float32)
    np.subtract(wide, shift, out=wide)
    return out
