"""Resizing of images, with the rules of ``torch.nn.functional.interpolate``."""

from __future__ import annotations

from collections.abc import Sequence

from . import _core
from .arguments import four, pair
from .arrays import Array, result_for, shape_of


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
    shape = (n, *pair("resize", "size", size, 1), c)
    out = result_for("resize", x, shape, out)
    _core.resize(x, out, shape, _mode("resize", mode), align_corners)
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
    shape = four("resize_backward", "x_shape", x_shape)
    out = result_for("resize_backward", dy, shape, out)
    _core.resize_backward(dy, out, shape, _mode("resize_backward", mode), align_corners)
    return out


def _mode(op: str, mode: str) -> str:
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"{op}: mode is {mode!r}, expected nearest or bilinear")
    return mode


def _four(op: str, name: str, array: Array) -> tuple[int, int, int, int]:
    shape = shape_of(op, name, array)
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected 4")
    return shape[0], shape[1], shape[2], shape[3]
