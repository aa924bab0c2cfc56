"""Where a run stands, and how that becomes a checkpoint and comes back bit by bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass
class Sums:
    """One rank's running totals within an epoch, in float64."""

    loss: float = 0.0  # sum of the rank's shares of the steps' losses, times the step's images
    images: int = 0
    correct: int = 0
    predictions: int = 0
    seconds: float = 0.0
    times: list[float] = field(default_factory=lambda: [0.0] * 4)  # compute, communication, wait, io

    def flat(self) -> NDArray[np.float64]:
        numbers = [self.loss, self.images, self.correct, self.predictions, self.seconds, *self.times]
        return np.array(numbers, np.float64)

    @classmethod
    def of(cls, flat: NDArray[np.float64]) -> Sums:
        loss, images, correct, predictions, seconds, *times = (float(v) for v in flat)
        return cls(loss, int(images), int(correct), int(predictions), seconds, times)


@dataclass
class Position:
    """How far a run is. `step` counts all steps; `epoch` the finished epochs; `step_in_epoch` those of the next one."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    best_epoch: int = 0
    best_step: int = 0
    stale: int = 0  # epochs without progress, for early stopping
    stopped_early: bool = False
    seconds: float = 0.0  # of training and validation, over all starts of the run

    def is_better(self, score: float, loss: float) -> bool:
        """Whether (score, loss) beats the best so far: a higher score, or the same score and a lower loss."""
        if math.isnan(score):
            return False
        return score > self.best_score or (score == self.best_score and loss < self.best_loss)


def pack(position: Position, sums: list[Sums], schedule: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    """The part of the state that is not arrays, as safetensors metadata."""
    content = {
        "position": asdict(position),
        "sums": [s.flat().tolist() for s in sums],
        "schedule": schedule,
        "run": run,
    }
    return {"step": str(position.step), "medmpi.state": json.dumps(content)}  # JSON's floats round-trip exactly


def unpack(metadata: dict[str, str]) -> tuple[Position, list[Sums], dict[str, Any], dict[str, Any]]:
    """The inverse of pack; ValueError where the metadata are not such."""
    try:
        content = json.loads(metadata["medmpi.state"])
        sums = [Sums.of(np.array(flat)) for flat in content["sums"]]
        return Position(**content["position"]), sums, content["schedule"], content["run"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's state cannot be read: {error!r}") from None


def share_of_sums(stored: list[Sums], rank: int, size: int) -> Sums:
    """This rank's sums: its own if the number of ranks is the stored one, else all of them on rank 0."""
    if len(stored) == size:
        return stored[rank]
    if rank == 0 and stored:
        return Sums.of(np.sum([s.flat() for s in stored], axis=0))
    return Sums()
