"""Sums over ranks: the shared-memory sum and the gradient buckets beside MPI's Allreduce and torch's gloo.

``python -m bench allreduce`` starts two ranks; ``mpirun -n N python -m bench.bench_allreduce`` any number. A sample is
the time of the slowest rank. All contenders take turns, so that a disturbance hits all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from medmpi import parallel
from medmpi.parallel import GradientBuckets, RankStatistics, World

SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 100_000_000)
BUCKETS = (256 << 10, 1 << 20, 4 << 20, 16 << 20, 1 << 30)


def measure(
    world: World, contenders: dict[str, Callable[[], Any]], seconds: float, *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of the slowest rank, per contender and sample.

    With ``warm`` each sample follows a call of the same that does not count, as in a loop: memory and caches are its
    own, and a core that idled while another rank worked alone is awake.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    inner = {}
    for name, work in contenders.items():
        start = time.perf_counter()
        work()
        inner[name] = world.broadcast(max(1, min(200, int(2e-3 / (time.perf_counter() - start)))))
    end = time.perf_counter() + seconds
    while world.broadcast(len(times[next(iter(times))]) < 3 or time.perf_counter() < end):
        for name, work in contenders.items():
            if warm:
                work()
            world.barrier()
            start = time.perf_counter()
            for _ in range(inner[name]):
                work()
            times[name].append(max(world.allgather((time.perf_counter() - start) / inner[name])))
    return times


def gloo(world: World) -> Callable[[np.ndarray], Callable[[], Any]] | None:
    """Makes torch's all_reduce of an array, or None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import tempfile

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    name = world.broadcast(tempfile.mktemp() if world.rank == 0 else "")
    dist.init_process_group("gloo", init_method=f"file://{name}", rank=world.rank, world_size=world.size)
    return lambda array: lambda: dist.all_reduce(torch.from_numpy(array))


def sums(world: World, seconds: float) -> list[dict[str, Any]]:
    """The sum of one array."""
    rows, torch_sum = [], gloo(world)
    for size in SIZES:
        n = size // 4
        shared, own, other = world.allocate(n), np.zeros(n, np.float32), np.zeros(n, np.float32)
        contenders: dict[str, Callable[[], Any]] = {"medmpi": lambda a=shared: world.sum(a)}
        if world.comm is not None:
            from mpi4py import MPI

            contenders["mpi"] = lambda a=own: world.comm.Allreduce(MPI.IN_PLACE, a)
        if torch_sum is not None and world.size > 1:
            contenders["gloo"] = torch_sum(other)
        rows.append(row("sum", size, measure(world, contenders, seconds)))
        if world.rank == 0:
            show(rows[-1])
    return rows


def small(world: World, seconds: float) -> list[dict[str, Any]]:
    """What one synchronised batch normalisation adds to a step, and the barrier."""
    joined = RankStatistics(world)
    mean = np.zeros(512)
    contenders = {
        "barrier": world.barrier,
        "any": lambda: world.any(False),
        "sum 64": lambda: joined.start_sum(mean[:64])(),
        "merge 64": lambda: joined.merge(1000, mean[:64], mean[:64]),
        "merge 512": lambda: joined.merge(1000, mean, mean),
    }
    rows = [row("small", 0, measure(world, contenders, seconds))]
    if world.rank == 0:
        show(rows[-1])
    return rows


def backward(world: World, seconds: float) -> list[dict[str, Any]]:
    """A pretended backward over 100 MB in 60 nodes, each of which writes its gradients; the sum's share of it."""
    n = 25_000_000
    edges = np.linspace(0, n, 61).astype(int) // 16 * 16
    edges[-1] = n
    slices = {str(i): slice(int(a), int(b)) for i, (a, b) in enumerate(pairwise(edges))}
    parameters = SimpleNamespace(grad=world.allocate(n), slices=slices)
    nodes = [SimpleNamespace(name=name) for name in slices]

    def fill(done: Callable[[Any], None]) -> None:
        for node in nodes:
            parameters.grad[slices[node.name]].fill(1)
            done(node)

    def step(buckets: GradientBuckets) -> None:
        fill(buckets.done)
        buckets.finish()

    def synchronous() -> None:
        fill(lambda node: world.sum(parameters.grad[slices[node.name]]))

    def at_end() -> None:
        fill(lambda node: None)
        world.sum(parameters.grad)

    contenders: dict[str, Callable[[], Any]] = {"fill only": lambda: fill(lambda node: None)}
    for size in BUCKETS:
        contenders[f"buckets {size >> 10}K"] = partial(step, GradientBuckets(parameters, world, size))
    contenders["wait at each node"] = synchronous
    contenders["one sum at the end"] = at_end
    rows = [row("backward", 4 * n, measure(world, contenders, seconds))]
    if world.rank == 0:
        show(rows[-1])
    return rows


def row(case: str, size: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """Best and median of each contender."""
    return {
        "case": case,
        "bytes": size,
        "samples": len(next(iter(times.values()))),
        "timings": {k: {"best": min(v), "median": statistics.median(v)} for k, v in times.items()},
    }


def show(result: dict[str, Any]) -> None:
    """One line per contender."""
    for name, t in result["timings"].items():
        rate = f"{result['bytes'] / t['best'] / 1e9:7.2f} GB/s" if result["bytes"] else ""
        print(
            f"{result['case']:9s}{result['bytes'] / 1e6:9.3f} MB  {name:20s}{t['best'] * 1e6:11.1f} us best "
            f"{t['median'] * 1e6:11.1f} median {rate}",
            flush=True,
        )


def main(options: argparse.Namespace) -> int:
    """Starts the ranks."""
    from medmpi.parallel.run import launch

    words = ["-m", "bench.bench_allreduce", "--seconds", str(options.seconds)]
    if options.only:
        words += ["--only", options.only]
    if options.out:
        words += ["--out", str(options.out)]
    return launch(2, words, threads=1)


def ranks_main() -> None:
    """What each rank does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", choices=("", "sum", "small", "backward"))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    world = parallel.start(timeout=120)
    rows = []
    for name, work in (("small", small), ("sum", sums), ("backward", backward)):
        if options.only in ("", name):
            rows += work(world, options.seconds)
    if options.out is not None and world.rank == 0:
        from .machine import describe

        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            for result in rows:
                line = {"family": "allreduce", "ranks": world.size, "mpi": world.library, **result}
                file.write(json.dumps({**line, "machine": describe()}) + "\n")


if __name__ == "__main__":
    ranks_main()
