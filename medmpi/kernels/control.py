"""Which backend runs, and on how many threads."""

from __future__ import annotations

from . import _core


def backends() -> list[str]:
    """Names of the backends that this machine can run, best first."""
    return _core.backends()


def backend() -> str:
    """The backend in use for host arrays."""
    return _core.backend()


def use_backend(name: str) -> None:
    """Run host arrays on this backend from now on. ValueError names the choices when it is unknown."""
    _core.use_backend(name)


def set_threads(threads: int) -> None:
    """Number of OpenMP threads of the calling thread's kernels."""
    _core.set_threads(threads)


def threads() -> int:
    """Number of OpenMP threads that the calling thread's kernels use."""
    return _core.threads()
