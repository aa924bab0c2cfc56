"""Arrays in the kernels' memory pool."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core

Array: TypeAlias = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")
_FLOAT32 = np.dtype(np.float32)


def empty(shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised C-contiguous array, 64-byte aligned, whose memory returns to the pool when it dies."""
    return _core.empty(shape, _FLOAT32 if dtype is np.float32 else np.dtype(dtype))


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Remembers the results of a function of sizes: a layer asks the same in every call."""
    cached: Any = lru_cache(maxsize=4096, typed=True)(function)

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            return cached(*args, **options)  # type: ignore[no-any-return]
        except TypeError:  # a list cannot be remembered
            return function(*args, **options)

    return call


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


def axes_of(op: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """Axes as numbers from 0: all where None. ValueError where one is no integer, out of range or named twice."""
    if axes is None:
        return tuple(range(ndim))
    items = [axes] if np.ndim(axes) == 0 else list(axes)
    found = []
    for item in items:
        try:
            axis = operator.index(item)
        except TypeError:
            raise ValueError(f"{op}: axes must be integers, got {item!r}") from None
        if not -ndim <= axis < ndim:
            raise ValueError(f"{op}: axes has {axis}, which is out of range for {ndim} dimensions")
        found.append(axis % ndim)
    if len(set(found)) != len(found):
        raise ValueError(f"{op}: axes must be unique, got {tuple(items)}")
    return tuple(found)
