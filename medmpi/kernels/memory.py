"""The memory of results: the pool's figures, planned arenas, recordings of kernel calls, CUDA graphs and uploads.

``CudaGraph()`` captures what the calling thread gives the device within ``with graph:``, instead of doing it, and
``graph.launch()`` does it, again and again, on the same memory: arrays from before are read and written where they are,
arrays made meanwhile hold the latest launch's values. ``CudaGraph(other)`` shares the other's memory; what runs one
after the other needs it once. RuntimeError says what cannot be captured: waiting for the device, copies from and to the
host, arrays that another thread used last. Do what is captured once before, so that tables are where they are read.

``Uploads()`` copies arrays of ``pinned_empty`` to the device beside its other work: ``send(host, out)`` returns at
once, what was given to the device before is done with ``out`` first, and what uses ``out`` afterwards waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from .arrays import require_device

Arena = _core.Arena
CudaGraph = _core.CudaGraph
Recording = _core.Recording
Uploads = _core.Uploads


def pinned_empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised host array in page-locked memory, from which the device copies by itself."""
    require_device("cuda")
    return _core.pinned_empty(shape, np.dtype(dtype))


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
