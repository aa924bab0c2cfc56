"""How fast groups of patches are read on a file system, by their size (S4's figure 5 and its lost tool, S4-31)."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmpi.data import DataError

SIZES = (25, 50, 100, 200, 400, 800, 1600)
_ENCODED = 47_000  # bytes of a stored cell, about: 224 * 224 * 3 / 3.2
_SLACK = 1.05


@dataclass(frozen=True)
class GroupSpeed:
    """Reading a group at once and patch by patch, seconds (medians)."""

    size: int
    bytes: int
    whole: float
    single: float

    @property
    def gain(self) -> float:
        return self.single / self.whole

    @property
    def per_patch(self) -> float:
        return self.whole / self.size


def measure(
    folder: Path, sizes: Sequence[int] = SIZES, *, repeats: int = 3, cell_bytes: int = _ENCODED
) -> list[GroupSpeed]:
    """Writes groups into a file in ``folder`` and reads them back, with the system's cache dropped where that works.

    DataError where the folder has too little room.
    """
    import h5py

    need, free = sum(sizes) * cell_bytes, _free(folder)
    if need * 1.1 > free:
        raise DataError(folder, f"has {free / 1e6:.0f} MB free, {need * 1.1 / 1e6:.0f} MB are needed", "name another")
    path = folder / f".medmpi-tune-{uuid.uuid4().hex}.h5"
    rng = np.random.default_rng(0)
    found = []
    try:
        with h5py.File(path, "w") as file:
            for size in sizes:
                data = rng.integers(0, 256, size * cell_bytes, np.uint8)
                file.create_dataset(f"{size}", data=data, chunks=(min(len(data), 1 << 20),), fletcher32=True)
        with path.open("rb") as raw:
            os.fsync(raw.fileno())
        for size in sizes:
            whole, single = [], []
            for _ in range(repeats):
                _drop(path)
                start = time.perf_counter()
                with h5py.File(path, "r") as file:
                    file[f"{size}"][...]
                whole.append(time.perf_counter() - start)
                _drop(path)
                start = time.perf_counter()
                for i in range(size):  # as S4's baseline: every patch opens the file and reads itself
                    with h5py.File(path, "r") as file:
                        file[f"{size}"][i * cell_bytes : (i + 1) * cell_bytes]
                single.append(time.perf_counter() - start)
            found.append(GroupSpeed(size, size * cell_bytes, float(np.median(whole)), float(np.median(single))))
    finally:
        path.unlink(missing_ok=True)
    return found


def best(found: Sequence[GroupSpeed], *, largest: int | None = None) -> GroupSpeed:
    """The smallest group whose patches are read within 5 % of the fastest; ``largest`` is what memory allows."""
    allowed = [speed for speed in found if largest is None or speed.size <= largest]
    if not allowed:
        raise ValueError(f"tune-groups: no size is at most {largest} patches, expected one")
    fastest = min(speed.per_patch for speed in allowed)
    return next(speed for speed in sorted(allowed, key=lambda s: s.size) if speed.per_patch <= fastest * _SLACK)


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _free(folder: Path) -> int:
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        raise DataError(folder, error.strerror or error, "name an existing folder") from error
    return stat.f_bavail * stat.f_frsize
