"""Which backend runs, and on how many threads."""

from __future__ import annotations

from . import _core
from .arguments import whole

_MOST_THREADS = 4096  # the runtime ends the process where it cannot start as many as it is told to


def _text(op: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{op}: name is {name!r}, expected text")
    return name


def backends() -> list[str]:
    """Names of the backends that this machine can run: for host arrays, best first, then "cuda" with a device."""
    return _core.backends()


def devices() -> list[str]:
    """What each CUDA device calls itself; empty where there is none. An emulated one says so."""
    return [_core.device_name(i) for i in range(_core.cuda_devices()[0])]


def missing_device() -> str:
    """Why there is no CUDA device; empty where there is one."""
    count, reason = _core.cuda_devices()
    return "" if count else reason or "no CUDA device is visible"


def use_device(index: int) -> None:
    """Use this CUDA device in this process. It comes before the first device array; RuntimeError after it."""
    count, reason = _core.cuda_devices()
    if not 0 <= index < count:
        raise ValueError(f"use_device: index is {index}, this machine has {count} CUDA devices {reason}".rstrip())
    _core.use_device(index)


def precision() -> str:
    """How a device multiplies matrices and convolves: "fp32", "tf32" or "bf16"."""
    return _core.precision()


def set_precision(name: str) -> None:
    """Round the operands of products and convolutions on a device: "fp32" not at all, "tf32" or "bf16" for its tensor
    cores. Arrays and sums stay float32. Host arrays are always computed in float32."""
    _core.set_precision(_text("set_precision", name))


def backend() -> str:
    """The backend in use for host arrays."""
    return _core.backend()


def use_backend(name: str) -> None:
    """Run host arrays on this backend from now on. ValueError names the choices when it is unknown."""
    _core.use_backend(_text("use_backend", name))


def set_threads(threads: int) -> None:
    """Number of OpenMP threads of the calling thread's kernels."""
    _core.set_threads(whole("set_threads", "threads", threads, 1, _MOST_THREADS))


def threads() -> int:
    """Number of OpenMP threads that the calling thread's kernels use."""
    return _core.threads()
