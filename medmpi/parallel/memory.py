"""Memory that all ranks of a node have mapped.

It is an anonymous file (memfd) that rank 0 of the node makes and the others open through ``/proc``: no name that could
stay behind after a crash, and no limit by the size of ``/dev/shm``, which containers keep at 64 MB.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import Array

_PAGE = 4096


def _open(info: tuple[int, int]) -> int:
    return os.open(f"/proc/{info[0]}/fd/{info[1]}", os.O_RDWR | os.O_CLOEXEC)


def share(comm: Any, size: int) -> mmap.mmap:
    """Zeroed memory of ``size`` bytes, the same for all ranks of ``comm`` (None: this process alone).

    Collective. OSError on every rank when one of them cannot map it.
    """
    size = max(_PAGE, -(-size // _PAGE) * _PAGE)
    if comm is None or comm.size == 1:
        return _advise(mmap.mmap(-1, size), size)
    fd, problem, memory = -1, "", None
    if comm.rank == 0:
        try:
            fd = os.memfd_create("medmpi", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        except OSError as error:
            problem = f"cannot make {size} bytes of shared memory: {error}"
    info, problem = comm.bcast(((os.getpid(), fd), problem))
    if not problem:
        try:
            if comm.rank:
                fd = _open(info)
            memory = _advise(mmap.mmap(fd, size), size)
        except OSError as error:
            problem = f"rank {comm.rank} of its node cannot map {size} bytes of shared memory: {error}"
    problems = [p for p in comm.allgather(problem) if p]
    if fd >= 0:
        os.close(fd)
    if problems or memory is None:
        raise OSError(problems[0])
    return memory


def _advise(memory: mmap.mmap, size: int) -> mmap.mmap:
    """Asks for huge pages where they pay; systems that cannot give them for shared memory refuse, which is no harm."""
    if size >= 1 << 21:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, AttributeError):
            return memory
    return memory


class Segments:
    """One float32 array per rank of a node, each of which every rank of the node can read and write."""

    def __init__(self, comm: Any, index: int, size: int, n: int) -> None:
        stride = -(-max(n, 1) * 4 // _PAGE) * _PAGE
        if stride >= 1 << 21:  # a huge page never straddles two ranks, so its memory is local to its writer
            stride = -(-stride // (1 << 21)) * (1 << 21)
        self.n = n
        self._memory = share(comm, stride * size)
        base = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        self.addresses = [base + stride * i for i in range(size)]
        self._stride, self._start = stride, self.addresses[index]
        self._mine: weakref.ref[Array] = weakref.ref(np.empty(0, np.float32))

    def of(self, index: int) -> Array:
        """The array of one rank of the node."""
        return np.frombuffer(self._memory, np.float32, self.n, self._stride * index)

    def lend(self, index: int) -> Array:
        """This rank's array; the segments count as in use while it or a view of it exists."""
        array = self.of(index)
        self._mine = weakref.ref(array)
        return array

    @property
    def in_use(self) -> bool:
        """Whether the array lent still exists."""
        return self._mine() is not None

    def offset_of(self, array: NDArray[Any]) -> int | None:
        """The element at which ``array`` starts in this rank's segment, None when it lies elsewhere."""
        if array.dtype != np.float32 or not array.flags.c_contiguous or not array.size:
            return None
        start = int(array.ctypes.data) - self._start
        return start // 4 if start >= 0 and start + array.nbytes <= self.n * 4 else None
