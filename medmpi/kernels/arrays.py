"""Arrays in the kernels' memory pools: numpy arrays, and device arrays in a CUDA device's memory.

A function computes where its arrays are. Device arguments may be our own :class:`DeviceArray` or any object with
``__cuda_array_interface__`` or ``__dlpack__`` (torch, CuPy, numba), taken without a copy; results are then
``DeviceArray``. Host and device arrays do not mix, but for small tables (filter taps, matrices of a warp), which are
host arrays in any case.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from ._core import DeviceArray as DeviceArray  # part of this module
from .arguments import whole

Array: TypeAlias = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")
_FLOAT32 = np.dtype(np.float32)


def empty(shape: Sequence[int], dtype: DTypeLike = np.float32, *, device: str = "cpu") -> NDArray[Any]:
    """An uninitialised C-contiguous array, 64-byte aligned, whose memory returns to the pool when it dies.

    ``device`` "cuda" makes a :class:`DeviceArray` there. RuntimeError where there is no device or no memory.
    """
    kind = _FLOAT32 if dtype is np.float32 else np.dtype(dtype)
    if kind.kind not in "biufc" or not kind.isnative:
        raise TypeError(f"empty: dtype is {kind}, expected one of numbers")
    if isinstance(shape, str | bytes) or not isinstance(shape, Sequence | np.ndarray):
        raise TypeError(f"empty: shape is {shape!r}, expected a sequence of sizes")
    shape = tuple(whole("empty", "shape", size, 0, 2**62) for size in shape)
    if device == "cpu":
        return _core.empty(shape, kind)
    require_device(device)
    return _device_empty(shape, dtype)


def _device_empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Functions take and return device arrays where their annotations, for readability, say numpy's."""
    return cast("NDArray[Any]", _core.device_empty(shape, np.dtype(dtype)))


def require_device(device: str) -> None:
    """ValueError for another name than "cpu" and "cuda"; RuntimeError with the reason where there is no device."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"empty: device is {device!r}, expected 'cpu' or 'cuda'")
    if device == "cuda":
        count, reason = _core.cuda_devices()
        if count == 0:
            raise RuntimeError(f"there is no CUDA device: {reason or 'none is visible'}; expected device 'cpu' here")


def resident(array: Any) -> Any:
    """The array itself in host memory, or a :class:`DeviceArray` of what is on the device, without a copy."""
    if type(array) is np.ndarray or type(array) is DeviceArray:
        return array
    view = _core.device_view(array)
    return array if view is None else view


def on_device(array: Any) -> bool:
    """Whether an array argument is on the device."""
    return type(array) is not np.ndarray and type(resident(array)) is DeviceArray


def empty_beside(array: Any, shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised array where ``array`` is."""
    if type(array) is np.ndarray or not on_device(array):
        return _core.empty(shape, _FLOAT32 if dtype is np.float32 else np.dtype(dtype))
    return _device_empty(shape, dtype)


def zeros_beside(array: Any, shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An array of zeros where ``array`` is."""
    if not on_device(array):
        return np.zeros(shape, dtype)
    zeros = _device_empty(shape, dtype)
    zeros[...] = 0
    return zeros


def to_device(array: Any, *, out: Any = None) -> Any:
    """A copy of a C-contiguous host array in the device's memory, in ``out`` where it is given.

    The copy is in order with the calling thread's kernels. The array may be changed when this returns.
    """
    if on_device(array):
        return resident(array)
    array = np.asarray(array)
    if out is None:
        out = empty(array.shape, array.dtype, device="cuda")
    out[...] = array
    return out


def to_host(array: Any, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """A device array's copy in host memory, in ``out`` where it is given; a host array itself."""
    return resident(array).numpy(out) if on_device(array) else np.asarray(array)


def to_place(array: Any, like: Any) -> Any:
    """A host array where ``like`` is: itself, or its copy on the device."""
    return to_device(np.ascontiguousarray(array)) if on_device(like) else array


def may_share_memory(a: Any, b: Any) -> bool:
    """Whether the memory of two of our own arrays may overlap."""
    if type(a) is np.ndarray or type(b) is np.ndarray:
        return type(a) is type(b) and np.may_share_memory(a, b)
    return _core.device_shares_memory(a, b)


def synchronize() -> None:
    """Wait for all that the calling thread has given the device. RuntimeError says what went wrong there."""
    if _core.cuda_devices()[0]:
        _core.synchronize()


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


def dtype_of(op: str, name: str, array: Any, *expected: str) -> str:
    """The name of an array's dtype; TypeError where it is none of those expected."""
    dtype = getattr(array, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.name not in expected or not dtype.isnative:
        what = f"has dtype {dtype}" if isinstance(dtype, np.dtype) else f"is a {type(array).__name__}"
        kinds = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
        raise TypeError(f"{op}: {name} {what}, expected {kinds}")
    return dtype.name


def result_for(
    op: str, like: Any, shape: tuple[int, ...], out: NDArray[Any] | None, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """``out`` where it is given and has this shape, else a new array beside ``like``. ValueError on another shape."""
    if out is None:
        try:
            return empty_beside(like, shape, dtype)
        except (MemoryError, TypeError, ValueError):
            raise MemoryError(f"{op}: no memory for a result of shape {shape}") from None
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
