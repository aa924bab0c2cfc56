"""What stages bring: steps of one rank beside two stages with statistics of each micro-batch, 1F1B.

``python -m bench pipeline`` starts two ranks of one thread. All shapes take turns; what counts is the lower quartile.
``busy`` is the share of a step in which a stage does not wait; M micro-batches in S stages allow M / (M + S - 1) of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medmpi import kernels, models, parallel
from medmpi.parallel import World
from medmpi.train.options import Options
from medmpi.train.planning import forecast
from medmpi.train.survey import UNDISTURBED, survey, undisturbed
from medmpi.train.trial import Trial

from .bench_plan import rank_options
from .bench_train import Job

JOBS = (Job("resnet18", 64, 32), Job("mini_xception", 128, 32), Job("alexnet", 64, 64))
SHAPES = ((1, 1, 1), (2, 1, 1), (1, 2, 4), (1, 2, 8))


def main(options: argparse.Namespace) -> int:
    """Starts the ranks."""
    from medmpi.parallel.run import launch

    words = ["-m", "bench.bench_pipeline", "--only", options.only]
    if options.out:
        words += ["--out", str(options.out)]
    return launch(2, words, threads=1)


def measured(job: Job, world: World, turns: int) -> list[dict[str, float]]:
    """A row for each shape."""
    image, settings = (job.size, job.size, job.channels), Options(sync_batchnorm=False)
    graphs = [
        models.build(job.model, classes=job.classes, channels=job.channels, image_size=job.size).fuse()
        for _ in range(len(SHAPES) + 1)
    ]
    found = survey(graphs.pop(), image, job.batch, world, settings, turns=3)
    plans = [forecast(found, settings, job.batch, shape) for shape in SHAPES]
    found.close()
    trials = [Trial(g, image, job.batch, settings, p, world) for g, p in zip(graphs, plans, strict=True)]
    seconds: list[list[float]] = [[] for _ in trials]
    busy: list[list[float]] = [[] for _ in trials]
    for turn in range(turns + 2):
        for trial, took, worked in zip(trials, seconds, busy, strict=True):
            step = trial.step()
            waited = world.allgather(trial.waited)
            if turn > 1:
                took.append(step)
                worked.append(1 - sum(waited) / len(waited) / step)
    for trial in trials:
        trial.close()
    serial = undisturbed(seconds[0])
    return [
        {
            "stages": p.stages, "micro_batches": p.micro_batches, "seconds": undisturbed(took), "predicted": p.seconds,
            "speed_up": round(serial / undisturbed(took), 3), "ideal": p.stages * ideal_busy(p.stages, p.micro_batches),
            "busy": sorted(worked)[len(worked) // 2],
        }
        for p, took, worked in zip(plans, seconds, busy, strict=True)
    ]  # fmt: skip


def ideal_busy(stages: int, micro_batches: int) -> float:
    """The share of a step in which a stage of a balanced pipeline computes (Huang et al. 2019)."""
    return micro_batches / (micro_batches + stages - 1)


def ranks_main() -> None:
    """What each rank does."""
    options = rank_options(__doc__)
    world = parallel.start(timeout=300)
    kernels.set_threads(1)
    for job in JOBS:
        if options.only not in job.model:
            continue
        rows = measured(job, world, options.turns)
        if world.rank:
            continue
        case = f"{job.model} {job.size}x{job.size} batch {job.batch}"
        print(f"{case}, {UNDISTURBED} of {options.turns}", flush=True)
        for row in rows[1:]:
            print(
                f"  {row['stages']} stages, {row['micro_batches']} micro-batches: {row['seconds'] * 1e3:.1f} ms"
                f" (predicted {row['predicted'] * 1e3:.1f}), x {row['speed_up']:.2f} of one rank, ideal"
                f" {row['ideal']:.2f}; busy {row['busy']:.0%}",
                flush=True,
            )
        if options.out is not None:
            _write(options.out, {"case": case, "statistic": UNDISTURBED, "samples": options.turns, "shapes": rows})


def _write(path: Path, row: dict[str, object]) -> None:
    from .machine import describe

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"family": "pipeline", "ranks": 2, **row, "machine": describe()}) + "\n")


if __name__ == "__main__":
    ranks_main()
