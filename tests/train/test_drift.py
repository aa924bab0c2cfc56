"""Free runs of several ranks drift from a serial one by rounding: no more than a serial run that was rounded otherwise.

A float32 sum over ranks has another order. Once a last digit switches a ReLU the weights part, as in any float32
program: so the measure is what half a unit in the last place of the initial weights does to a run on one rank.
"""

from __future__ import annotations

from typing import Any

import grids
import numpy as np
import pytest
import tiny

from medmpi.parallel import World
from medmpi.train.job import build_job


def rounded_otherwise(options: Any, world: World) -> Any:
    """A job whose initial weights are changed in the last digit."""
    job = build_job(options, world)
    value = job.parameters.value
    value *= 1 + np.random.default_rng(0).choice([-6e-8, 6e-8], value.size).astype(np.float32)
    return job


def distance(run: grids.Arrays, serial: grids.Arrays) -> float:
    """Euclidean, over all weights, relative to their norm."""
    difference = sum(float(((run[n].astype(np.float64) - w) ** 2).sum()) for n, w in serial.items())
    return float(np.sqrt(difference / sum(float((w.astype(np.float64) ** 2).sum()) for w in serial.values())))


@pytest.mark.mpi(min_size=2)
def test_ranks_drift_no_more_than_rounding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    options = tiny.options(
        "--data=phantom:size=32,samples=60", "--model=unet", "--task=segmentation", "--stem=auto", "--width=8",
        "--batch-size=12", "--epochs=4", "--optimizer=sgd", "--lr=0.01", "--schedule=constant",
    )  # fmt: skip
    alone = world.split(world.rank)
    serial = grids.train(options, alone)[1]
    together = grids.train(options, world)[1]
    monkeypatch.setattr(grids, "build_job", rounded_otherwise)
    other = grids.train(options, alone)[1]
    alone.close()
    assert len(serial) == len(together) == len(other) == 20
    assert distance(together[3][1], serial[3][1]) <= 1e-6  # nothing has switched yet
    assert distance(together[19][1], serial[19][1]) <= 10 * distance(other[19][1], serial[19][1])
    assert distance(together[19][1], serial[19][1]) <= 1e-4
