"""Times of work on a CUDA device: replays of captured graphs between events, of all contenders in turn.

Events and graphs are the driver's own, so that no framework is needed to time our kernels. Each contender works on
several sets of arrays in turn, more than the device's cache holds. On an emulated device, which has no events, the
host's clock takes their place: such times say nothing about kernels, but all of this file runs.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from medmpi import kernels as K

Work = Callable[[], Any]

CACHE_BYTES = 150e6  # more than two of the largest caches of today's devices would hold of a case's arrays
MOST_SETS = 8


@dataclass
class DeviceCase:
    """One piece of work: ``contenders[name]`` has a call for each set of arrays; "medmpi" is first."""

    name: str
    group: str
    precision: str
    contenders: dict[str, list[Work]]
    flops: float = 0.0
    bytes: float = 0.0  # each input read once, each output written once
    error: Callable[[], float] | None = None  # of our result, relative, in the 2-norm


def sets_for(nbytes: float) -> int:
    """How many sets of arrays of so many bytes a case takes."""
    return max(1, min(MOST_SETS, int(-(-CACHE_BYTES // max(nbytes, 1)))))


class Values:
    """Standard normal values, drawn once: arrays are pieces of them, each set from another place."""

    def __init__(self, count: int = 1 << 26) -> None:
        self.values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
        self.next = 0

    def device(self, *shape: int) -> Any:
        """A device array of this shape."""
        size = int(np.prod(shape))
        if size > self.values.size:
            raise ValueError(f"an array of {size} values, expected at most {self.values.size}")
        if self.next + size > self.values.size:
            self.next = 0
        piece = self.values[self.next : self.next + size].reshape(shape)
        self.next += size + 1
        return K.to_device(piece)


class Driver:
    """Events and graphs on one stream, by the CUDA driver."""

    def __init__(self, stream: int) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.stream = ctypes.c_void_p(stream)
        self.events = (self._event(), self._event())

    def call(self, name: str, *arguments: Any) -> None:
        """One call; RuntimeError with its status unless that is success."""
        status = getattr(self.cuda, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: CUDA status {status}")

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def capture(self, works: list[Work]) -> Work:
        """A replay of all the works, one after the other."""
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, 2)  # relaxed: other threads may go on
        try:
            for work in works:
                work()
        finally:
            self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
        return lambda: self.call("cuGraphLaunch", runnable, self.stream)

    def seconds(self, run: Work, repeats: int) -> float:
        """Seconds of one of ``repeats`` runs."""
        first, last = self.events
        self.call("cuEventRecord", first, self.stream)
        for _ in range(repeats):
            run()
        self.call("cuEventRecord", last, self.stream)
        self.call("cuEventSynchronize", last)
        milliseconds = ctypes.c_float()
        elapsed = "cuEventElapsedTime_v2" if hasattr(self.cuda, "cuEventElapsedTime_v2") else "cuEventElapsedTime"
        self.call(elapsed, ctypes.byref(milliseconds), first, last)
        return milliseconds.value / 1e3 / repeats


class HostClock:
    """The same for an emulated device."""

    def capture(self, works: list[Work]) -> Work:
        """All the works, one after the other."""
        return lambda: [work() for work in works]

    def seconds(self, run: Work, repeats: int) -> float:
        """Seconds of one of ``repeats`` runs."""
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        K.synchronize()
        return (time.perf_counter() - start) / repeats


def our_clock() -> Driver | HostClock:
    """For the calling thread's stream of ours."""
    if "emulat" in K.devices()[0].lower():
        return HostClock()
    interface = K.to_device(np.zeros(1, np.float32)).__cuda_array_interface__
    return Driver(int(interface.get("stream") or 0))


class TorchClock:
    """torch's works, captured by torch, timed by torch's events."""

    def capture(self, works: list[Work]) -> Work:
        """A replay of all the works."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        return graph.replay  # type: ignore[no-any-return]

    def seconds(self, run: Work, repeats: int) -> float:
        """Seconds of one of ``repeats`` runs."""
        import torch

        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(repeats):
            run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / repeats


def prepared(clock: Any, works: list[Work]) -> tuple[Work, bool]:
    """What to time, and whether it is a graph: what cannot be captured is called."""
    for work in works * 2:  # scratch grows, algorithms are chosen
        work()
    K.synchronize()
    try:
        return clock.capture(works), not isinstance(clock, HostClock)
    except RuntimeError as error:
        print(f"  not captured, timed call by call: {error}", flush=True)
        return lambda: [work() for work in works], False


def measure(case: DeviceCase, ours: Any, seconds: float) -> dict[str, tuple[float, float, bool]]:
    """Best and median seconds of a call of each contender, and whether it was a graph's; rounds go on so long."""
    runs = {}
    for name, works in case.contenders.items():
        clock = TorchClock() if name.startswith("torch") else ours
        run, graph = prepared(clock, works)
        once = max(clock.seconds(run, 1), 1e-7)
        runs[name] = (clock, run, graph, max(1, int(2e-3 / once)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, (clock, run, _, repeats) in runs.items():
            times[name].append(clock.seconds(run, repeats) / len(case.contenders[name]))
    return {name: (min(t), statistics.median(t), runs[name][2]) for name, t in times.items()}


@dataclass
class Peaks:
    """What this device was measured to do: bytes copied per second (read and written), products per precision."""

    copy: float
    flops: dict[str, float] = field(default_factory=dict)


def measure_peaks(ours: Any, torch_too: bool, size: int = 8192) -> Peaks:
    """A copy of 1 GiB by our runtime, and torch's matrix products of ``size`` squared."""
    emulated = isinstance(ours, HostClock)
    count = 1 << 20 if emulated else 1 << 28
    a, b = K.empty((count,), device="cuda"), K.empty((count,), device="cuda")
    a[...] = 1.0
    b[...] = a
    copy = min(ours.seconds(lambda: b.__setitem__(..., a), 5) for _ in range(3))
    peaks = Peaks(2 * a.nbytes / copy)
    if torch_too:
        import torch

        for precision in ("fp32", "tf32", "bf16"):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            x, y = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
            clock = TorchClock()
            clock.seconds(lambda x=x, y=y: x @ y, 3)
            best = min(clock.seconds(lambda x=x, y=y: x @ y, 5) for _ in range(3))
            peaks.flops[precision] = 2.0 * size**3 / best
    return peaks


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Our products, and torch's, in this precision."""
    before = K.precision()
    K.set_precision(name)
    try:
        yield
    finally:
        K.set_precision(before)


class DeviceResults:
    """Prints a row for each case and appends it as a JSON line to a file."""

    def __init__(self, family: str, machine: dict[str, Any], peaks: Peaks, path: Path | None) -> None:
        self.family, self.machine, self.peaks = family, {**machine, "device": K.devices()[0]}, peaks
        self.ratios: dict[str, list[float]] = {}
        self.file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a")
        rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in peaks.flops.items())
        print(f"{K.devices()[0]}: copies {peaks.copy / 1e9:.0f} GB/s; products {rates or 'not measured'}")

    def add(self, case: DeviceCase, timings: dict[str, tuple[float, float, bool]]) -> None:
        """Report one measured case. The ratio is the best rival's median over ours: above 1 we are faster."""
        ours = timings["medmpi"][1]
        rivals = {name: median for name, (_, median, _) in timings.items() if name != "medmpi"}
        ratio = min(rivals.values()) / ours if rivals else None
        error = case.error() if case.error else None
        row = {
            "family": self.family,
            "case": case.name,
            "group": case.group,
            "precision": case.precision,
            "ratio": ratio and round(ratio, 4),
            "ratios": {name: round(median / ours, 4) for name, median in rivals.items()},
            "error": error,
            "flops": case.flops,
            "bytes": case.bytes,
            "copy_bytes_per_s": self.peaks.copy,
            "product_flops": self.peaks.flops,
            "timings": {name: {"best": t[0], "median": t[1], "graph": t[2]} for name, t in timings.items()},
            "machine": self.machine,
        }
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        rate = f"{case.bytes / ours / 1e9:6.0f} GB/s {100 * case.bytes / ours / self.peaks.copy:3.0f}%"
        if case.flops:
            peak = self.peaks.flops.get(case.precision)
            rate += f" {case.flops / ours / 1e12:6.1f} TF/s" + (
                f" {100 * case.flops / ours / peak:3.0f}%" if peak else ""
            )
        columns = "  ".join(f"{name} {t[1] * 1e6:8.1f}" for name, t in timings.items())
        marks = (f"  x{ratio:5.2f}" if ratio else "") + (f"  error {error:.1e}" if error is not None else "")
        print(f"{case.name:34s} {case.precision:4s}  {columns} us  {rate}{marks}", flush=True)
        if ratio:
            self.ratios.setdefault(f"{case.group} {case.precision}", []).append(ratio)

    def summary(self) -> None:
        """Print the geometric mean and the worst ratio of each group."""
        for group, ratios in self.ratios.items():
            mean = statistics.geometric_mean(ratios)
            print(f"{self.family} {group}: geometric mean x{mean:.2f}, worst x{min(ratios):.2f}, {len(ratios)} cases")
        if self.file:
            self.file.close()


def run(family: str, cases: Iterator[DeviceCase], machine: dict[str, Any], options: Any, torch_too: bool) -> int:
    """Measure and report cases one after another; one that fails is named, and the next one goes on."""
    ours = our_clock()
    results = DeviceResults(family, machine, measure_peaks(ours, torch_too), options.out)
    failed = 0
    for case in cases:
        if options.only not in case.name:
            continue
        try:
            with precision(case.precision):
                results.add(case, measure(case, ours, min(options.seconds, 0.3)))
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            failed += 1
            print(f"{case.name:34s} {case.precision:4s}  FAILED: {error}", flush=True)
    results.summary()
    return 1 if failed else 0
