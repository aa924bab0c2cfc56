"""How much of the machine a run uses, per epoch: cores, memory, energy and, where there is one, the GPU (S0 fig. 5)."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from .energy import Energy

if TYPE_CHECKING:
    from medmpi.parallel import World

_GPU_SECONDS = 0.5


@dataclass(frozen=True)
class Usage:
    """One rank's use since it was last asked: seconds of processor and wall time, the cores it may run on, bytes."""

    node: int
    cores: frozenset[int]
    cpu_seconds: float
    wall_seconds: float
    memory: int
    node_memory: int
    gpu: tuple[float, float] | None = None  # mean utilisation and memory, per cent
    joules: float | None = None  # of the whole node, said by one of its ranks


def summarise(ranks: Sequence[Usage]) -> dict[str, float]:
    """What a job used of what it was given, in per cent.

    ``cpu_percent``: processor time of all ranks by wall time and cores that any of a node's ranks may run on.
    ``memory_percent``: their resident memory by the node's, of the fullest node; ``memory_mib`` of all of them.
    ``gpu_percent``, ``gpu_memory_percent``: means over the ranks that see a GPU, absent where none does.
    ``energy_j``: joules of all nodes, whoever used them; absent where one of them has no counter.
    """
    nodes: dict[int, list[Usage]] = {}
    for usage in ranks:
        nodes.setdefault(usage.node, []).append(usage)
    given = used = 0.0
    fullest = 0.0
    for members in nodes.values():
        cores = len(frozenset[int]().union(*(u.cores for u in members)))
        given += cores * max(u.wall_seconds for u in members)
        used += sum(u.cpu_seconds for u in members)
        fullest = max(fullest, sum(u.memory for u in members) / max(members[0].node_memory, 1))
    found = {
        "cpu_percent": 100 * used / given if given else float("nan"),
        "memory_percent": 100 * fullest,
        "memory_mib": sum(u.memory for u in ranks) / 2**20,
    }
    gpus = [u.gpu for u in ranks if u.gpu is not None]
    if gpus:
        found["gpu_percent"] = sum(g[0] for g in gpus) / len(gpus)
        found["gpu_memory_percent"] = sum(g[1] for g in gpus) / len(gpus)
    joules = [u.joules for u in ranks if u.joules is not None]
    if len(joules) == len(nodes):
        found["energy_j"] = sum(joules)
    return found


class Resources:
    """Asked once per epoch by all ranks; each answer covers the time since the last one."""

    def __init__(self, world: World) -> None:
        self._world, self._process, self._gpu = world, psutil.Process(), Gpu.find()
        self._memory = _memory_limit()
        first = world.node_ranks[world.node][0] == world.rank
        self._energy = Energy.find(None if self._gpu is None else self._gpu.joules) if first else None
        self._read = self._now()

    def read(self) -> dict[str, float]:
        """``summarise`` of all ranks. Collective."""
        before, self._read = self._read, self._now()
        mine = Usage(
            node=self._world.node,
            cores=frozenset(os.sched_getaffinity(0)),
            cpu_seconds=self._read[0] - before[0],
            wall_seconds=self._read[1] - before[1],
            memory=int(self._process.memory_info().rss),
            node_memory=self._memory,
            gpu=None if self._gpu is None else self._gpu.mean(),
            joules=None if self._energy is None else self._energy.joules(),
        )
        return summarise(self._world.allgather(mine))

    def close(self) -> None:
        """Ends the threads that watch a GPU and the energy."""
        if self._gpu is not None:
            self._gpu.stop()
        if self._energy is not None:
            self._energy.stop()

    def _now(self) -> tuple[float, float]:
        times = os.times()
        return times.user + times.system, time.perf_counter()


def _memory_limit() -> int:
    """The node's memory, or less where a control group allows less."""
    limit = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                limit = min(limit, int(file.read()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return limit


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass
class Gpu:
    """NVIDIA's management library, asked twice a second by a thread: a single look would say only what is on just now.

    By ctypes: no other package, and no process is forked after MPI has started. All visible GPUs are averaged.
    """

    library: ctypes.CDLL
    handles: list[ctypes.c_void_p]
    _samples: list[tuple[float, float]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def find(cls) -> Gpu | None:
        """The watcher, started; None where there is no driver or no GPU."""
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
            return None
        handles = [ctypes.c_void_p() for _ in range(count.value)]
        if any(library.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(h)) for i, h in enumerate(handles)):
            return None
        gpu = cls(library, handles)
        threading.Thread(target=gpu._watch, name="medmpi-gpu", daemon=True).start()
        return gpu

    def sample(self) -> tuple[float, float] | None:
        """Utilisation and memory in per cent at this moment; None where the driver does not say."""
        found = []
        for handle in self.handles:
            use, memory = _Utilisation(), _Memory()
            if self.library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(use)):
                return None
            if self.library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
                return None
            found.append((float(use.gpu), 100 * memory.used / max(memory.total, 1)))
        return sum(f[0] for f in found) / len(found), sum(f[1] for f in found) / len(found)

    def mean(self) -> tuple[float, float] | None:
        """The mean of the samples since the last call."""
        samples, self._samples = self._samples, []
        now = self.sample()
        samples += [] if now is None else [now]
        if not samples:
            return None
        return sum(s[0] for s in samples) / len(samples), sum(s[1] for s in samples) / len(samples)

    def joules(self) -> float | None:
        """What the GPUs have used since their driver was loaded; None where it does not say."""
        total = 0.0
        for handle in self.handles:
            used = ctypes.c_ulonglong()
            if self.library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
                return None
            total += used.value / 1e3
        return total

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_GPU_SECONDS):
            sample = self.sample()
            if sample is not None:
                self._samples.append(sample)
