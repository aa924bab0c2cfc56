"""Forward, backward and the gradient's norm of one training step, on whatever part of the model a rank holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.data import Batch

if TYPE_CHECKING:
    from medmpi.train.job import Job


@dataclass
class Tally:
    """What the last stage sees of its share of a batch; zeros on the other stages."""

    loss: float = 0.0
    images: int = 0
    correct: int = 0
    predictions: int = 0


def run(
    job: Job, batch: Batch, context: nn.Context, divisors: NDArray[np.float64], done: Callable[[Any], None]
) -> Tally:
    """Adds the gradients of this replica's share of the batch. All stages of the replica call it together."""
    tally = Tally(images=len(batch.ids) if job.grid.last and job.grid.tile == 0 else 0)
    labels_here = job.local_labels(batch.labels) if job.grid.last else batch.labels
    # every tile holds the same logits of whole images: each takes an equal share of the loss, one counts
    copies = job.grid.tiles if job.tiling is not None and job.tiling.output is None else 1

    def loss(rows: slice, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        labels = labels_here[rows]
        value, dlogits = job.criterion(logits, labels, denominator=divisors)
        if copies > 1:
            value, dlogits = value / copies, K.scale_(dlogits, 1 / copies)
        if copies > 1 and job.grid.tile:
            tally.loss += value
            return dlogits
        predicted = K.to_host(logits).argmax(-1)
        tally.loss += value
        tally.correct += int((predicted == labels).sum())
        tally.predictions += predicted.size
        return dlogits

    job.pipeline.step(batch.images, len(batch.ids), context, loss, done)
    return tally


def norm_and_loss(job: Job, loss: float) -> tuple[float, float]:
    """The norm of the whole model's gradient, and the loss of this replica's share, on every stage of the replica."""
    pipe, squares = job.grid.pipe, [K.sum_squares(job.parameters.grad)]
    if job.parameters.exact is not None:  # one sum for each parameter: the total must not depend on the cuts
        squares = [K.sum_squares(gradient.reshape(-1)) for _, gradient in job.parameters.named_gradients()]
        if pipe is not None:
            squares = [s for part in pipe.allgather(squares, "gather the gradient's squares") for s in part]
    if pipe is not None:
        total, loss = pipe.sum(np.array([squares[0], loss]), "sum of the gradient's squares")
        squares = squares if job.parameters.exact is not None else [float(total)]
    if job.grid.rows is not None:
        loss = job.grid.rows.sum(np.array([loss]), "sum of the tiles' losses")[0]
    finite = all(map(math.isfinite, squares))
    return math.sqrt(math.fsum(squares)) if finite else math.nan, float(loss)
