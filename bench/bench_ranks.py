"""A training step over two ranks of one thread beside torch's DistributedDataParallel (gloo) in the same processes.

``python -m bench ranks`` starts two ranks; ``mpirun -n N python -m bench.bench_ranks`` any number. A sample is the step
of the slowest rank; both sides take turns. medmpi's step synchronises batch statistics, torch's default does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import kernels, models, nn, parallel
from medmpi.parallel import GradientBuckets, NodeUpdate, RankStatistics, World

from .bench_allreduce import gloo, measure, row
from .bench_train import SGD, Job, torch_model
from .bench_train import our_step as alone_step
from .harness import Work

JOBS = (Job("resnet18", 32, 32), Job("resnet18", 128, 32), Job("mini_xception", 32, 32))
_OVERLAP = 15  # steps


def our_step(job: Job, world: World, x: Any, labels: Any, *, synchronised: bool) -> Work:
    """A step on this rank's half of the batch."""
    graph = models.build(job.model, classes=job.classes, channels=job.channels, image_size=job.size).fuse()
    parameters = nn.Parameters(graph, seed=0, allocate=world.allocate)
    buckets = GradientBuckets(parameters, world)
    optimizer, loss = nn.SGD(parameters, **SGD), nn.CrossEntropy()
    statistics = RankStatistics(world) if synchronised else None
    update = NodeUpdate(parameters, optimizer, world)
    total = np.array([float(world.size * len(x))])

    arena = kernels.Arena()

    def work() -> GradientBuckets:
        parameters.zero_grad()
        with arena:
            (logits,), saved = graph.forward(x, context=nn.Context(statistics=statistics))
            _, dlogits = loss(logits, labels, denominator=total)
            graph.backward((dlogits,), saved, done=buckets.done)
            del logits, saved, dlogits
        buckets.finish()
        update.step()
        return buckets

    return work


def overlap(world: World, work: Work) -> dict[str, float]:
    """What the sum of gradients costs within steps, and what MPI's of as many bytes takes after backward; medians.

    ``hidden``: the share of MPI's time that a step does not take; ``within_backward``: the share of the sum's own work
    that is done when backward ends.
    """
    from mpi4py import MPI

    size = work().edges[-1]
    seconds: dict[str, list[float]] = {"sum": [], "late": [], "wait": [], "mpi": []}
    array = np.zeros(size, np.float32)
    for _ in range(_OVERLAP):
        buckets = work()
        for key, value in (("sum", buckets.t_comm), ("late", buckets.t_late), ("wait", buckets.t_wait)):
            seconds[key].append(max(world.allgather(value)))
        world.barrier()
        start = time.perf_counter()
        world.comm.Allreduce(MPI.IN_PLACE, array)
        seconds["mpi"].append(max(world.allgather(time.perf_counter() - start)))
    typical = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "bytes": 4 * float(size), **typical, "hidden": 1 - typical["sum"] / typical["mpi"],
        "within_backward": 1 - typical["late"] / typical["sum"],
    }  # fmt: skip


def serial_step(job: Job, world: World) -> Work:
    """The whole batch on rank 0 alone."""
    if world.rank:
        return lambda: None
    rng = np.random.default_rng(world.size)
    x = rng.standard_normal((job.batch, job.size, job.size, job.channels), dtype=np.float32)
    return planned(alone_step(job, x, rng.integers(0, job.classes, len(x))))


def planned(step: Work) -> Work:
    """The step on planned memory, as in training."""
    arena = kernels.Arena()

    def work() -> None:
        with arena:
            step()

    return work


def ddp_step(job: Job, x: Any, labels: Any, layout: str) -> Work:
    """The same in torch, with gradients as views of the buckets and the fused optimizer."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    fmt = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    model = DistributedDataParallel(
        torch_model(job).to(memory_format=fmt).train(), gradient_as_bucket_view=True, forward_sync_buffers=False
    )
    tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(tx), torch.from_numpy(labels)).backward()
        optimizer.step()

    return work


def main(options: argparse.Namespace) -> int:
    """Starts the ranks."""
    from medmpi.parallel.run import launch

    words = ["-m", "bench.bench_ranks", "--seconds", str(options.seconds), "--only", options.only]
    if options.out:
        words += ["--out", str(options.out)]
    return launch(2, words, threads=1)


def ranks_main() -> None:
    """What each rank does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    world = parallel.start(timeout=300)
    kernels.set_threads(1)
    gloo(world)
    for job in JOBS:
        if options.only not in job.model:
            continue
        rng = np.random.default_rng(world.rank)
        x = rng.standard_normal((job.batch // world.size, job.size, job.size, job.channels), dtype=np.float32)
        labels = rng.integers(0, job.classes, len(x))
        ours = our_step(job, world, x, labels, synchronised=True)
        result = row(
            f"{job.model} {job.size}x{job.size} batch {job.batch}",
            0,
            measure(
                world,
                {
                    "medmpi": ours,
                    "medmpi, statistics per rank": our_step(job, world, x, labels, synchronised=False),
                    "medmpi, one rank": serial_step(job, world),
                    "torch_ddp_nchw": ddp_step(job, x, labels, "nchw"),
                    "torch_ddp_nhwc": ddp_step(job, x, labels, "nhwc"),
                },
                max(1, job.batch // 64) * 8 * options.seconds,
                warm=True,
            ),
        )
        result["overlap"] = overlap(world, ours)
        rival = min(t["best"] for name, t in result["timings"].items() if name.startswith("torch"))
        result["ratio"] = round(rival / result["timings"]["medmpi"]["best"], 4)
        result["speed_up"] = {
            key: round(result["timings"]["medmpi, one rank"][key] / result["timings"]["medmpi"][key], 3)
            for key in ("best", "median")
        }
        if world.rank:
            continue
        times = "  ".join(f"{name} {t['best'] * 1e3:.1f}" for name, t in result["timings"].items())
        print(f"{result['case']}, {world.size} ranks: {times} ms  x {result['ratio']:.2f}", flush=True)
        print(f"  against one rank: x {result['speed_up']['best']:.2f}, median {result['speed_up']['median']:.2f}")
        o = result["overlap"]
        print(
            f"  sum of {o['bytes'] / 1e6:.1f} MB: {o['sum'] * 1e3:.2f} ms of a step, {o['within_backward']:.0%} done"
            f" when backward ends, then {o['wait'] * 1e3:.2f} ms for the slower rank; MPI_Allreduce"
            f" {o['mpi'] * 1e3:.2f} ms, so {o['hidden']:.0%} of it are saved",
            flush=True,
        )
        if options.out is not None:
            from .machine import describe

            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                line = {"family": "ranks", "ranks": world.size, **result, "machine": describe()}
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    ranks_main()
