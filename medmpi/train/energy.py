"""Joules that a node uses: processors and memory by Linux's power capping counters (RAPL), GPUs by NVIDIA's (S0-25).

Counters are a whole machine's: what else runs there is in them, and they go on while a rank waits. Many systems let
only root read those of the processors, virtual machines have none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_SECONDS = 20.0  # between looks: a counter starts again at 0 after some minutes of full load


@dataclass
class _Counter:
    """Microjoules that go up to ``largest`` and then start again."""

    path: Path
    largest: int
    last: int
    total: int = 0

    def look(self) -> None:
        now = int(self.path.read_text())
        self.total += now - self.last if now >= self.last else now + self.largest - self.last
        self.last = now


def _counters(root: Path) -> Iterator[_Counter]:
    """One of each processor package, and of its memory where that is counted apart."""
    for zone in sorted(root.glob("intel-rapl:*")):  # AMD's too
        try:
            name = (zone / "name").read_text().strip()
            package = re.fullmatch(r"intel-rapl:\d+", zone.name) and name.startswith("package")
            if package or name == "dram":
                path, largest = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
                yield _Counter(path, largest, int(path.read_text()))
        except (OSError, ValueError):
            continue


@dataclass
class Energy:
    """The counters of a node, looked at by a thread now and then. ``gpu`` says the joules of its GPUs so far."""

    counters: list[_Counter]
    gpu: Callable[[], float | None] | None = None
    _last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def find(cls, gpu: Callable[[], float | None] | None = None, root: Path = POWERCAP) -> Energy | None:
        """The counters that can be read, watched from now on; None where there are none."""
        energy = cls(list(_counters(root)), gpu if gpu is not None and gpu() is not None else None)
        if not energy.counters and energy.gpu is None:
            return None
        energy._last = energy._total()
        if energy.counters:
            threading.Thread(target=energy._watch, name="medmpi-energy", daemon=True).start()
        return energy

    def joules(self) -> float:
        """Since the last call; NaN where a counter can no longer be read."""
        try:
            before, self._last = self._last, self._total()
        except (OSError, ValueError):
            return float("nan")
        return self._last - before

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _total(self) -> float:
        with self._lock:
            for counter in self.counters:
                counter.look()
            used = sum(counter.total for counter in self.counters) / 1e6
        if self.gpu is not None:
            joules = self.gpu()
            used += float("nan") if joules is None else joules
        return used

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                with self._lock:
                    for counter in self.counters:
                        counter.look()
            except (OSError, ValueError):
                return
