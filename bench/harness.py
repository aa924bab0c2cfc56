"""Interleaved, gated timing of several ways to do the same work.

Every contender is called in turn, round after round, so that a disturbance hits all alike; a sample counts only when
the core was undisturbed around it (:class:`bench.machine.Gate`) and the process had its processor time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .machine import Gate

Work = Callable[[], Any]


@dataclass
class Timing:
    """Seconds of one contender: best and median of the accepted samples, and how many of all were accepted."""

    best: float
    median: float
    accepted: int
    taken: int


@dataclass
class Case:
    """One piece of work, its cost, and who does it."""

    name: str
    contenders: dict[str, Work]  # "medmpi" first; rivals after it
    flops: float = 0.0
    bytes: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


def measure(case: Case, gate: Gate, *, samples: int = 12, seconds: float = 4.0) -> dict[str, Timing]:
    """Time all contenders of a case; stops at ``samples`` accepted ones each or after ``seconds``."""
    for work in case.contenders.values():
        work()
        work()
    accepted: dict[str, list[float]] = {name: [] for name in case.contenders}
    taken: dict[str, list[float]] = {name: [] for name in case.contenders}
    # short work is repeated inside a sample, so that the clock and the gate do not count
    repeats = {name: max(1, int(2e-4 / max(once(work), 1e-7))) for name, work in case.contenders.items()}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and min(len(v) for v in accepted.values()) < samples:
        for name, work in case.contenders.items():
            before = gate.burst()
            cpu, start = time.process_time(), time.perf_counter()
            for _ in range(repeats[name]):
                work()
            wall = time.perf_counter() - start
            cpu = time.process_time() - cpu
            after = gate.burst()
            taken[name].append(wall / repeats[name])
            if gate.open(before, after) and cpu > 0.9 * wall:
                accepted[name].append(wall / repeats[name])
    return {
        name: Timing(
            min(accepted[name] or taken[name]),
            statistics.median(accepted[name] or taken[name]),
            len(accepted[name]),
            len(taken[name]),
        )
        for name in case.contenders
    }


def once(work: Work) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Results:
    """Prints a row for each case and appends it as a JSON line to a file."""

    def __init__(self, family: str, machine: dict[str, Any], path: Path | None) -> None:
        self.family, self.machine = family, machine
        self.ratios: dict[str, list[float]] = {}
        self.file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a")

    def add(self, case: Case, timings: dict[str, Timing], threads: int, gate: Gate) -> None:
        """Report one measured case. The ratio is the best rival's time over ours: above 1 we are faster."""
        ours = timings["medmpi"]
        rivals = {name: t for name, t in timings.items() if name != "medmpi"}
        ratio = min(t.best for t in rivals.values()) / ours.best if rivals else float("nan")
        group = case.extra.get("group", case.name)
        self.ratios.setdefault(f"{group} [{threads} thr]", []).append(ratio)
        row = {
            "family": self.family,
            "case": case.name,
            "threads": threads,
            "ratio": round(ratio, 4),
            "peak_gflops_per_core": round(gate.peak, 1),
            "flops": case.flops,
            "bytes": case.bytes,
            "timings": {name: vars(t) for name, t in timings.items()},
            **case.extra,
            "machine": self.machine,
        }
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        rate = ""
        if case.flops:
            gflops = case.flops / ours.best / 1e9
            rate = f"{gflops:7.1f} GF/s {100 * gflops / (gate.peak * threads):4.0f}%"
        elif case.bytes:
            rate = f"{case.bytes / ours.best / 1e9:7.2f} GB/s     "
        columns = "  ".join(f"{name} {t.best * 1e3:9.3f}" for name, t in timings.items())
        gated = f"{min(t.accepted for t in timings.values())}/{ours.taken}"
        print(f"{case.name:34s} {threads} thr  {columns} ms  {rate}  x{ratio:5.2f}  ({gated})", flush=True)

    def summary(self) -> None:
        """Print the geometric mean and the worst ratio of each group."""
        for group, ratios in self.ratios.items():
            mean = statistics.geometric_mean(ratios)
            print(f"{self.family} {group}: geometric mean x{mean:.2f}, worst x{min(ratios):.2f}, {len(ratios)} cases")
        if self.file:
            self.file.close()


def run(cases: Iterable[Case], results: Results, threads: int, *, seconds: float) -> None:
    """Measure and report cases one after another; a case is built only when its turn comes."""
    gate = Gate()
    for case in cases:
        results.add(case, measure(case, gate, seconds=seconds), threads, gate)
