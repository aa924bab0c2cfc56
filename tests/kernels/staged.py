"""Runs tests that are written for host arrays on a CUDA device, too: what they call gets copies of its arrays there,
and what it has changed or made is copied back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from medmpi import kernels

# Small tables, which are host arrays in any case.
ON_HOST = {"normalize": {"mean", "std"}, "warp": {"matrix", "gain", "bias"}, "otsu_threshold": {"hist"}}
NOT_KERNELS = ("arrays", "control", "memory")

HOST_BACKENDS = [name for name in kernels.backends() if name != "cuda"]
BACKENDS = [*HOST_BACKENDS, "cuda"]
# Marks of a module that has its own way to the device, or none: the fixture ``backend`` for host arrays alone.
ON_HOST_BACKENDS = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.parametrize("backend", HOST_BACKENDS, indirect=True, scope="module"),
]


def why_no_device() -> str:
    """Why there is no device to test on; empty where there is one."""
    reason = kernels.missing_device()
    return reason and f"no CUDA device ({reason}); -Ccmake.define.MEDMPI_CUDA=emulate builds one on the CPU"


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """The arrays of an argument, also in lists and tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays_in(item)


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with each leaf changed."""
    if isinstance(value, (list, tuple)):
        items = [replaced(item, change) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    return change(value)


def emulated() -> bool:
    """Whether the device is one that the CPU emulates."""
    return any("emulation" in name for name in kernels.devices())


def runnable_backends() -> list[str]:
    """The backends that this machine can run."""
    return HOST_BACKENDS if why_no_device() else BACKENDS


def stageable(arrays: list[np.ndarray]) -> bool:
    """Whether copies stand for these arrays: not where a test is about their layout or about memory that they share."""
    plain = all(
        type(a) is np.ndarray and a.flags.c_contiguous and a.flags.writeable and a.dtype.kind in "fiu" for a in arrays
    )
    return plain and not any(a is not b and np.may_share_memory(a, b) for a, b in itertools.combinations(arrays, 2))


def staged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            return function(*args, **options)
        mine = [value for key, value in given.items() if key not in ON_HOST.get(name, ())]
        arrays = list({id(a): a for a in arrays_in(mine)}.values())
        if not arrays or not stageable(arrays):
            return function(*args, **options)
        copies = {id(a): kernels.to_device(a) for a in arrays}

        def to_device(value: Any) -> Any:
            return copies.get(id(value), value)

        try:
            result = function(*replaced(args, to_device), **{k: replaced(v, to_device) for k, v in options.items()})
        except NotImplementedError as error:
            pytest.skip(str(error))
        for a in arrays:
            np.copyto(a, kernels.to_host(copies[id(a)]))
        hosts = {id(copies[id(a)]): a for a in arrays}

        def to_host(value: Any) -> Any:
            if not isinstance(value, kernels.DeviceArray):
                return value
            return hosts[id(value)] if id(value) in hosts else kernels.to_host(value)

        return replaced(result, to_host)

    return call


@contextlib.contextmanager
def on_backend(name: str) -> Iterator[None]:
    """While it lasts the functions of ``medmpi.kernels`` run on this backend. Skips where there is no device for it."""
    if name == "cuda":
        if reason := why_no_device():
            pytest.skip(reason)
        with on_device():
            yield
        return
    before = kernels.backend()
    kernels.use_backend(name)
    try:
        yield
    finally:
        kernels.use_backend(before)


@contextlib.contextmanager
def on_device() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels.__all__:
            function = getattr(kernels, name)
            module = getattr(function, "__module__", "").rpartition(".")[2]
            if inspect.isfunction(function) and module not in NOT_KERNELS:
                patch.setattr(kernels, name, staged(name, function))
        yield
