"""Evaluation over all ranks: every sample exactly once, uneven shares, results put in order by sample id.

What is gathered belongs to single samples (logits, or counts of pixels), so the scores do not depend on the number of
ranks; nothing is averaged over averages.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.data import Batch, Dataset
from medmpi.evaluation import instances, match_instances
from medmpi.train import metrics
from medmpi.train.feed import feed
from medmpi.train.metrics import Scores

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job

Reals = NDArray[np.float64]


def evaluate(
    job: Job,
    split: str,
    world: World,
    *,
    poll: Callable[[], None] = lambda: None,
    outputs: dict[str, Outputs] | None = None,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Scores:
    """The scores of a split, the same on every rank. Collective.

    `poll` is called on all ranks the same number of times, between batches: it may be collective and may raise to stop
    the evaluation. `reading` is entered to wait for a batch. RuntimeError if a sample is missing or counted twice.
    `outputs`, given by all ranks, gets what the scores were made of under the split's name on rank 0.
    """
    dataset, weight = job.dataset, job.class_weights
    part, n = dataset.splits[split], len(dataset.splits[split])
    per_round = np.maximum(job.balance.shares(job.options.batch_size), 1)
    rounds = int(np.max(-(-job.balance.shares(n) // per_round)))
    mine, step = job.balance.part(np.arange(n, dtype=np.int64))[1], int(per_round[job.grid.replica])
    batches = [mine[i : i + step] for i in range(0, len(mine), step)]
    grid, context = job.grid, nn.Context(train=False)
    measure = _logits if dataset.task == "classification" else partial(_pixels, objects=outputs is not None)
    criterion = job.criterion
    found: list[tuple[NDArray[Any], ...]] = []
    with feed(job, part, batches) as loader:
        batch_of = iter(loader)
        for turn in range(rounds):
            poll()
            if turn < len(batches):
                with reading():
                    batch = next(batch_of)
                logits = job.pipeline.infer(batch.images, len(batch.ids), context)
                if logits is not None and job.tiling is not None and job.tiling.output is not None:
                    logits = job.tiling.exchange.gather_rows(logits, job.tiling.output)
                if logits is not None and grid.tile == 0:
                    found.append(measure(batch, logits, weight, criterion))
    gathered = world.gather(found)
    scores: Scores | None = None
    if gathered is not None:
        pieces = [piece for rank in gathered for piece in rank]
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)] if pieces else []
        made = _outputs(dataset, n, columns)
        scores = _scores(made, n, weight, job.options.focal_gamma)
        if outputs is not None:
            outputs[split] = made
    return cast(Scores, world.broadcast(scores))


def _logits(
    batch: Batch, logits: NDArray[np.float32], weight: Reals | None, criterion: nn.Loss
) -> tuple[NDArray[Any], ...]:
    return np.asarray(batch.ids), batch.labels.copy(), logits.copy()


def _pixels(
    batch: Batch, logits: NDArray[np.float32], weight: Reals | None, criterion: nn.Loss, objects: bool
) -> tuple[NDArray[Any], ...]:
    """Per image: the confusion matrix of its pixels; sum of the cross-entropy, its divisor, and the Dice loss.

    With `objects` also how the connected regions of each class but the background match.
    """
    n, classes = len(logits), logits.shape[-1]
    confusion = np.empty((n, classes, classes), np.int64)
    sums = np.zeros((n, 3))
    matches = np.zeros((n, classes, 5))
    gamma = getattr(criterion, "gamma", 0.0)
    for i in range(n):
        z = logits[i].reshape(-1, classes).astype(np.float64)
        labels = batch.labels[i].reshape(-1).astype(np.int64)
        z -= z.max(1, keepdims=True)
        picked = metrics.focal(z[np.arange(len(labels)), labels] - np.log(np.exp(z).sum(1)), gamma)
        weights = np.ones(len(labels)) if weight is None else weight[labels]
        sums[i, :2] = (weights * picked).sum(), weights.sum()
        if isinstance(criterion, nn.DiceCrossEntropy):
            dice, _ = K.dice_loss(
                logits[i : i + 1], batch.labels[i : i + 1], smooth=criterion.smooth,
                include_background=criterion.include_background, denominator=1.0,
            )  # fmt: skip
            sums[i, 2] = criterion.dice * dice
        predicted = z.argmax(1)
        confusion[i] = metrics.confusion_matrix(labels, predicted, classes)
        if objects:
            truth, found = batch.labels[i], predicted.reshape(batch.labels[i].shape)
            for k in range(1, classes):
                matches[i, k] = astuple(match_instances(instances(truth == k)[0], instances(found == k)[0]))
    return np.asarray(batch.ids), confusion, sums, matches


@dataclass(frozen=True)
class ClassOutputs:
    """What a split's scores were made of, in order of the samples' ids: labels (n,) and logits (n, classes)."""

    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class MaskOutputs:
    """The same for masks: pixels by true and predicted class (n, classes, classes); sums of the loss (n, 3).

    ``matches`` holds the fields of an evaluation.Match for each class (n, classes, 5), 0 where they were not asked for.
    """

    confusions: NDArray[np.int64]
    sums: Reals
    matches: Reals


Outputs: TypeAlias = ClassOutputs | MaskOutputs


def _outputs(dataset: Dataset, n: int, columns: list[NDArray[Any]]) -> Outputs:
    """All samples in order, each once."""
    k = len(dataset.classes)
    classification = dataset.task == "classification"
    if n == 0:
        if classification:
            return ClassOutputs(np.empty(0, np.int64), np.empty((0, k), np.float32))
        return MaskOutputs(np.empty((0, k, k), np.int64), np.empty((0, 3)), np.empty((0, k, 5)))
    ids, *values = columns
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(n)):
        raise RuntimeError(f"evaluate: {len(ids)} results with {len(np.unique(ids))} ids, expected each of {n} once")
    sorted_values = [value[order] for value in values]
    return ClassOutputs(*sorted_values) if classification else MaskOutputs(*sorted_values)


def _scores(outputs: Outputs, n: int, weight: Reals | None, gamma: float) -> Scores:
    if isinstance(outputs, ClassOutputs):
        return metrics.classification(outputs.labels, outputs.logits, weight, gamma)
    entropy, divisor, dice = outputs.sums.sum(0)
    loss = entropy / divisor + dice / n if n else float("nan")
    return metrics.from_confusion(outputs.confusions.sum(0), loss=loss, auc=float("nan"), samples=n)
