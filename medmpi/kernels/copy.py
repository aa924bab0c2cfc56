"""Concatenation, splitting, padding, cropping and the two image layouts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from . import _core
from .arguments import LARGEST, Padding, margins, number, whole
from .arrays import Array, result_for, shape_of


def _axis(op: str, axis: int, rank: int) -> int:
    axis = whole(op, "axis", axis, -LARGEST)
    if not -rank <= axis < rank:
        raise ValueError(f"{op}: axis is {axis}, expected {-rank} to {rank - 1}")
    return axis % rank


def concat(xs: Sequence[Array], *, axis: int = -1, out: Array | None = None) -> Array:
    """The arrays one after the other along ``axis``; all other sizes agree."""
    shapes = [shape_of("concat", f"xs[{i}]", x) for i, x in enumerate(xs)]
    if not shapes:
        raise ValueError("concat: xs is empty, expected one array or more")
    axis = _axis("concat", axis, len(shapes[0]))
    for i, shape in enumerate(shapes):
        if len(shape) != len(shapes[0]) or shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :]:
            raise ValueError(f"concat: xs[{i}] has shape {shape}, expected {shapes[0]} but for axis {axis}")
    if len(xs) > 20:
        raise ValueError(f"concat: xs has {len(xs)} arrays, expected at most 20")
    total = sum(shape[axis] for shape in shapes)
    out = result_for("concat", xs[0], (*shapes[0][:axis], total, *shapes[0][axis + 1 :]), out)
    rows, inner = prod(shapes[0][:axis]), prod(shapes[0][axis + 1 :])
    _core.join(list(xs), [shape[axis] * inner for shape in shapes], rows, out)
    return out


def split(x: Array, sizes: Sequence[int], *, axis: int = -1, out: Sequence[Array] | None = None) -> list[Array]:
    """New arrays of these sizes along ``axis``, in order: the inverse of ``concat`` and its gradient."""
    shape = shape_of("split", "x", x)
    axis = _axis("split", axis, len(shape))
    sizes = [whole("split", "sizes", size, 0) for size in sizes]
    if sum(sizes) != shape[axis]:
        raise ValueError(f"split: sizes is {sizes}, expected sizes that add up to {shape[axis]}")
    if out is not None and len(out) != len(sizes):
        raise ValueError(f"split: out has {len(out)} arrays, expected {len(sizes)}")
    if len(sizes) > 20:
        raise ValueError(f"split: sizes has {len(sizes)} values, expected at most 20")
    rows, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
    parts = [
        result_for("split", x, (*shape[:axis], size, *shape[axis + 1 :]), None if out is None else out[i])
        for i, size in enumerate(sizes)
    ]
    _core.cut(x, [size * inner for size in sizes], rows, parts)
    return parts


def _image(op: str, x: Array) -> tuple[int, int, int, int]:
    shape = shape_of(op, "x", x)
    if len(shape) != 4:
        raise ValueError(f"{op}: x has {len(shape)} dimensions, expected 4")
    return shape[0], shape[1], shape[2], shape[3]


def pad(x: Array, padding: Padding, *, value: float = 0.0, out: Array | None = None) -> Array:
    """``x`` (N, H, W, C) with margins of ``value``: an int, (rows, columns) or ((top, bottom), (left, right))."""
    n, h, w, c = _image("pad", x)
    top, bottom, left, right = margin = margins("pad", padding)
    out = result_for("pad", x, (n, top + h + bottom, left + w + right, c), out)
    _core.pad(x, margin, number("pad", "value", value), out)
    return out


def crop(x: Array, padding: Padding, *, out: Array | None = None) -> Array:
    """``x`` (N, H, W, C) without the margins that ``pad`` adds: its inverse and its gradient."""
    n, h, w, c = _image("crop", x)
    top, bottom, left, right = margin = margins("crop", padding)
    if top + bottom > h or left + right > w:
        raise ValueError(f"crop: padding is {padding}, expected margins within the image's {h} x {w}")
    out = result_for("crop", x, (n, h - top - bottom, w - left - right, c), out)
    _core.crop(x, margin, out)
    return out


def nchw_to_nhwc(x: Array, *, out: Array | None = None) -> Array:
    """Images (N, C, H, W) as (N, H, W, C)."""
    n, c, h, w = _image("nchw_to_nhwc", x)
    out = result_for("nchw_to_nhwc", x, (n, h, w, c), out)
    _core.transpose("nchw_to_nhwc", x, True, out)
    return out


def nhwc_to_nchw(x: Array, *, out: Array | None = None) -> Array:
    """Images (N, H, W, C) as (N, C, H, W)."""
    n, h, w, c = _image("nhwc_to_nchw", x)
    out = result_for("nhwc_to_nchw", x, (n, c, h, w), out)
    _core.transpose("nhwc_to_nchw", x, False, out)
    return out
