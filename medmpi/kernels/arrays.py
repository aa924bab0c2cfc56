"""Arrays in the kernels' memory pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core

Array: TypeAlias = NDArray[np.float32]


def empty(shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised C-contiguous array, 64-byte aligned, whose memory returns to the pool when it dies."""
    return _core.empty(shape, np.dtype(dtype))


def shape_of(op: str, name: str, array: Any) -> tuple[int, ...]:
    """The shape of an array argument; TypeError with the operation's name where it is not an array."""
    shape = getattr(array, "shape", None)
    if not isinstance(shape, tuple):
        raise TypeError(f"{op}: {name} is a {type(array).__name__}, expected a float32 array")
    return shape


def result_for(
    op: str, shape: tuple[int, ...], out: NDArray[Any] | None, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """``out`` where it is given and has this shape, else a new array. ValueError where the shape differs."""
    if out is None:
        return empty(shape, dtype)
    if shape_of(op, "out", out) != shape:
        raise ValueError(f"{op}: out has shape {out.shape}, expected {shape}")
    return out
