"""What this machine is and whether its cores are undisturbed at this moment."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from medmpi import __version__, kernels
from medmpi.kernels import _core

#: Without these torch hands large results back to the system and pays page faults at every call.
TUNED_ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=1073741824"
)


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def revision() -> str:
    """The source revision, with '+' where the tree has changes."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def describe() -> dict[str, Any]:
    """What a result must say about where it was measured."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "backend": kernels.backend(),
        "medmpi": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "tuned_allocator": os.environ.get("GLIBC_TUNABLES", "") == TUNED_ALLOCATOR,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Gate:
    """Accepts a sample only when a burst of multiply-adds just before and after it ran near this core's peak."""

    def __init__(self, threshold: float = 0.93, rounds: int = 20000) -> None:
        self.threshold, self.rounds = threshold, rounds
        self.peak = max(_core.probe_gflops(rounds) for _ in range(200))

    def burst(self) -> float:
        """GFLOP/s of one burst, about 50 us; raises the known peak when it is beaten."""
        rate: float = _core.probe_gflops(self.rounds)
        self.peak = max(self.peak, rate)
        return rate

    def open(self, before: float, after: float) -> bool:
        """Whether the core was undisturbed around a sample."""
        return min(before, after) >= self.threshold * self.peak
