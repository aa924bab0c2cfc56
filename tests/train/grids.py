"""Runs one job on any grid of ranks, and looks at gradients and weights of the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.parallel import World
from medmpi.parallel.arrays import gather_arrays
from medmpi.train.job import Job, build_job
from medmpi.train.options import Options
from medmpi.train.progress import Silent
from medmpi.train.trainer import Hooks, Trainer

Arrays = dict[str, NDArray[Any]]


class NoSaver:
    """Leaves nothing behind."""

    def save(self, *args: object, **named: object) -> None:
        pass


def _ignore(*args: object, **named: object) -> None:
    pass


def train(options: Options, world: World, follow: list[tuple[Arrays, Arrays]] | None = None) -> Any:
    """The job after training, each step's (gradients, weights) of this rank's stage, and the rows of metrics.

    After each step the weights are set to those of ``follow``, the record of another run.
    """
    job = build_job(options, world)
    rows: list[Any] = []
    record: list[tuple[Arrays, Arrays]] = []
    hooks = Hooks(_ignore, _ignore, _ignore, lambda row, scores: rows.append((row, scores)), Silent())
    step = job.update.step

    def watched() -> None:
        gradients = {name: g.copy() for name, g in job.parameters.named_gradients()}
        step()
        record.append((gradients, {name: value.copy() for name, value in job.parameters.named()}))
        if follow is not None:
            for name, value in job.parameters.named():
                value[...] = follow[len(record) - 1][1][name]

    job.update.step = watched
    Trainer(job, world, NoSaver(), hooks).run()
    return job, record, rows


def differences(mine: Arrays, serial: Arrays) -> float:
    """The largest difference over the arrays of ``mine``, each relative to the serial one's largest element.

    Arrays that are nothing but rounding (the bias before a normalisation has no gradient) count relative to the model's
    largest element.
    """
    scale = max(float(np.abs(g).max()) for g in serial.values())
    worst = 0.0
    for name, g in mine.items():
        size = float(np.abs(serial[name]).max())
        worst = max(worst, float(np.abs(g - serial[name]).max()) / (size if size > 1e-5 * scale else scale))
    return worst


def whole(job: Job, arrays: Arrays) -> Arrays | None:
    """The stages' arrays together, on rank 0."""
    found = gather_arrays(job.world, arrays, "collect for the test")
    return None if found is None else {name: a for part in found for name, a in part.items()}
