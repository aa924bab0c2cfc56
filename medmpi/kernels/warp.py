"""Affine warps and grey-level changes of uint8 images, each image by its own parameters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .arrays import empty_beside, shape_of


def warp(
    x: NDArray[np.uint8],
    matrix: ArrayLike,
    *,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mode: str = "bilinear",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Warp uint8 NHWC images: output pixel (row i, column j) shows the input at ``matrix @ (j, i, 1)`` = (column, row).

    ``matrix`` is (n, 2, 3), rounded to 1/65536; what lies outside the input is 0; ``mode`` is "bilinear" or "nearest".
    Then every value becomes ``gain * value + bias``, rounded and clamped, with ``gain`` and ``bias`` (n, c), rounded to
    1/4096. All arithmetic is on integers, so the result is the same on every machine.
    ValueError for shapes that do not fit, an unknown mode and numbers that are not finite.
    """
    shape = shape_of("warp", "x", x)
    if len(shape) != 4:
        raise ValueError(f"warp: x has {len(shape)} dimensions, expected 4")
    n, _, _, c = shape
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"warp: mode is {mode!r}, expected bilinear or nearest")
    numbers = _fixed("matrix", matrix, (n, 2, 3), 65536).reshape(n, 6)
    colour: NDArray[np.int64] | None = None
    if gain is not None or bias is not None:
        gains = np.ones((n, c)) if gain is None else gain
        biases = np.zeros((n, c)) if bias is None else bias
        colour = np.empty((n, c, 2), dtype=np.int64)
        colour[..., 0] = _fixed("gain", gains, (n, c), 4096)
        colour[..., 1] = _fixed("bias", biases, (n, c), 4096)
    if out is None:
        out = empty_beside(x, shape, np.uint8)
    _core.warp(x, numbers, colour, out, mode == "bilinear")
    return out


def _fixed(name: str, values: ArrayLike, shape: tuple[int, ...], one: int) -> NDArray[np.int64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"warp: {name} has shape {array.shape}, expected {shape}")
    if not (np.abs(array) < 2.0**24).all():
        raise ValueError(f"warp: {name} has numbers that are not finite or beyond 2^24, expected less")
    return np.rint(array * one).astype(np.int64, order="C")
