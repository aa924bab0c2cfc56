"""The memory of results: the pool's figures, planned arenas, and recordings of kernel calls."""

from __future__ import annotations

from . import _core

Arena = _core.Arena
Recording = _core.Recording


def memory_statistics() -> dict[str, int]:
    """Bytes ``in_use``, ``reserved``, ``peak`` of the pool, and ``fresh_blocks`` asked from the system so far."""
    return _core.memory_statistics()


def device_memory_statistics() -> dict[str, int]:
    """Bytes ``in_use``, ``reserved``, ``peak`` of the device's pool, and its ``cap`` (MEDMPI_DEVICE_MEMORY; 0: none).

    All are 0 where no device array was ever made.
    """
    return _core.device_statistics()


def reset_peak_memory() -> None:
    """Let ``peak`` start again from what is in use now."""
    _core.reset_peak_memory()


def trim_memory() -> None:
    """Hand the pool's free blocks back to the system."""
    _core.trim_memory()
