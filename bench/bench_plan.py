"""How well ``medmpi plan`` predicts: every shape of up to two ranks, for four networks, predicted and run in turns.

``python -m bench plan`` starts two ranks of one thread; ``mpirun -n N python -m bench.bench_plan`` any number. The
published oracle for this task (Kahira et al. 2021) is 86.74 % accurate on average and 97.57 % for data parallelism.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medmpi import kernels, models, parallel
from medmpi.parallel import World
from medmpi.parallel.plan import Prediction, shapes
from medmpi.train.options import Options
from medmpi.train.planning import accuracies, accuracy, forecast, table, verify
from medmpi.train.survey import UNDISTURBED, Survey, survey

from .bench_train import Job

JOBS = (
    Job("resnet18", 32, 32),
    Job("mini_xception", 64, 32),
    Job("unet", 4, 64, 1, 2),
    Job("alexnet", 32, 64),
)


def main(options: argparse.Namespace) -> int:
    """Starts the ranks."""
    from medmpi.parallel.run import launch

    words = ["-m", "bench.bench_plan", "--only", options.only]
    if options.out:
        words += ["--out", str(options.out)]
    return launch(2, words, threads=1)


def measured(job: Job, world: World, turns: int) -> tuple[list[Prediction], list[float], Survey]:
    """All shapes of a job, predicted and run."""

    def make() -> Any:
        return models.build(job.model, classes=job.classes, channels=job.channels, image_size=job.size).fuse()

    image, settings, model = (job.size, job.size, job.channels), Options(), make()
    found = survey(model, image, job.batch, world, settings, turns=1)
    every = [
        forecast(found, settings, job.batch, shape)
        for ranks in range(1, world.size + 1)
        for shape in shapes(ranks, job.batch, len(model), whole_batch=True)
        if shape[2] <= 4
    ]
    every, runs = verify(make, image, job.batch, settings, every, world, found, turns)
    found.close()
    return every, runs, found


def rank_options(description: str | None) -> argparse.Namespace:
    """What the ranks of a benchmark in turns are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def ranks_main() -> None:
    """What each rank does."""
    options = rank_options(__doc__)
    world = parallel.start(timeout=300)
    kernels.set_threads(1)
    all_plans: list[Prediction] = []
    all_runs: list[float] = []
    for job in JOBS:
        if options.only not in job.model:
            continue
        plans, runs, found = measured(job, world, options.turns)
        all_plans += plans
        all_runs += runs
        if world.rank:
            continue
        print(f"{job.model} {job.size}x{job.size} batch {job.batch}", flush=True)
        print("\n".join(table(plans, runs, job.batch)), flush=True)
        if options.out is not None:
            _write(options.out, job, world, plans, runs, found)
    if world.rank == 0:
        print("\n".join(accuracies(all_plans, all_runs, options.turns)), flush=True)


def _write(path: Path, job: Job, world: World, plans: list[Prediction], runs: list[float], found: Survey) -> None:
    from .machine import describe

    rows = [
        {
            "replicas": p.replicas, "stages": p.stages, "micro_batches": p.micro_batches, "predicted": p.seconds,
            "measured": r,
        }
        for p, r in zip(plans, runs, strict=True)
    ]  # fmt: skip
    line = {
        "family": "plan", "case": f"{job.model} {job.size}x{job.size} batch {job.batch}", "ranks": world.size,
        "statistic": UNDISTURBED, "samples": found.turns, "accuracy": accuracy(plans, runs), "shapes": rows,
        "machine": describe(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    ranks_main()
