"""Resizing of images, with the rules of ``torch.nn.functional.interpolate``."""

from __future__ import annotations

from collections.abc import Sequence

from . import _core
from .arrays import Array, empty_beside, shape_of


def resize(
    x: Array,
    size: int | tuple[int, int],
    *,
    mode: str = "bilinear",
    align_corners: bool = False,
    out: Array | None = None,
) -> Array:
    """Resize NHWC float32 images to ``size`` (height, width).

    ``mode`` is "nearest" or "bilinear"; pixel centres lie at half integers unless ``align_corners`` (bilinear only)
    keeps the outermost centres where they are. ValueError on an unknown mode or a size below 1.
    """
    n, _, _, c = _four("resize", "x", x)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (n, height, width, c)
    if min(height, width) < 1:
        raise ValueError(f"resize: size is ({height}, {width}), expected at least 1")
    if out is None:
        out = empty_beside(x, shape)
    _core.resize(x, out, shape, mode, align_corners)
    return out


def resize_backward(
    dy: Array,
    *,
    x_shape: Sequence[int],
    mode: str = "bilinear",
    align_corners: bool = False,
    out: Array | None = None,
) -> Array:
    """Gradient of :func:`resize` with respect to its input of shape ``x_shape`` (n, h, w, c)."""
    _four("resize_backward", "dy", dy)
    if out is None:
        out = empty_beside(dy, x_shape)
    _core.resize_backward(dy, out, tuple(x_shape), mode, align_corners)
    return out


def _four(op: str, name: str, array: Array) -> tuple[int, int, int, int]:
    shape = shape_of(op, name, array)
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected 4")
    return shape[0], shape[1], shape[2], shape[3]
