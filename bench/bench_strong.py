"""Strong scaling over ranks: a step of one global batch on one rank and on two, and what of the loss is the machine's.

``python -m bench strong`` starts two ranks of one thread; ``mpirun -n N python -m bench.bench_strong`` any number. All
contenders take turns. ``one`` has the whole batch alone, ``share`` a rank's share of it alone, ``apart`` is every rank
with its share, knowing nothing of the others: one / share falls short of the number of ranks by what a step costs
whatever its batch, apart / share is what cores take from each other, and one / apart is what is left for any program.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import kernels, parallel
from medmpi.parallel import World

from .bench_allreduce import measure
from .bench_plan import rank_options
from .bench_ranks import our_step, planned
from .bench_train import Job
from .bench_train import our_step as alone_step
from .harness import Work

BATCHES = (32, 64, 128, 256, 512)
_PAIRS = (("one", "joined"), ("one", "own"), ("one", "share"), ("apart", "share"), ("one", "apart"))


def main(options: argparse.Namespace) -> int:
    """Starts the ranks."""
    from medmpi.parallel.run import launch

    words = ["-m", "bench.bench_strong", "--only", options.only]
    if options.out:
        words += ["--out", str(options.out)]
    return launch(2, words, threads=1)


def _data(job: Job, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, job.size, job.size, job.channels), np.float32), rng.integers(0, job.classes, n)


def contenders(job: Job, world: World) -> dict[str, Work]:
    """Steps: of ``joined`` batch statistics, of each rank's ``own``, and those that show the limits."""
    share = _data(job, job.batch // world.size)

    def first(work: Work) -> Work:
        return work if world.rank == 0 else lambda: None

    return {
        "one": first(planned(alone_step(job, *_data(job, job.batch)))),
        "share": first(planned(alone_step(job, *share))),
        "apart": planned(alone_step(job, *share)),
        "joined": our_step(job, world, *share, synchronised=True),
        "own": our_step(job, world, *share, synchronised=False),
    }


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """The medians of ratios of samples of the same turn."""

    def typical(a: Sequence[float], b: Sequence[float]) -> float:
        return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)

    return {f"{a} / {b}": typical(times[a], times[b]) for a, b in _PAIRS}


def ranks_main() -> None:
    """What each rank does."""
    options = rank_options(__doc__)
    world = parallel.start(timeout=300)
    kernels.set_threads(1)
    for batch in BATCHES:
        if options.only not in str(batch):
            continue
        job = Job("resnet18", batch, 32)
        times = measure(world, contenders(job, world), 24 + batch / 8, warm=True)
        if world.rank:
            continue
        found = ratios(times)
        case = f"{job.model} {job.size}x{job.size} batch {batch}"
        print(f"{case}, {len(times['one'])} turns: {found}", flush=True)
        if options.out is not None:
            _write(options.out, world, {"case": case, "ratios": found}, times)


def _write(path: Path, world: World, row: dict[str, Any], times: dict[str, list[float]]) -> None:
    from .machine import describe

    medians = {name: statistics.median(v) for name, v in times.items()}
    line = {"family": "strong", "ranks": world.size, **row, "samples": len(times["one"]), "seconds": medians}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**line, "machine": describe()}) + "\n")


if __name__ == "__main__":
    ranks_main()
