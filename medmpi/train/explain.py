"""Test images with what the model sees in them, from the saved weights: Grad-CAM maps, or masks beside the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import models, nn
from medmpi.data.normalise import normalise
from medmpi.evaluation import dice_per_image, softmax
from medmpi.train.evaluate import ClassOutputs, MaskOutputs, Outputs
from medmpi.train.pictures import short

if TYPE_CHECKING:
    from medmpi.data import Dataset

SHOWN = 8


@dataclass
class Explained:
    """Pictures uint8 (n, h, w, c) with a title each, and either heat (n, h, w) in 0..1 or masks (n, h, w)."""

    images: NDArray[np.uint8]
    titles: list[str]
    heat: NDArray[np.float32] | None = None
    truth: NDArray[np.uint8] | None = None
    predicted: NDArray[np.uint8] | None = None


def explain(dataset: Dataset, folder: Path, outputs: Outputs, split: str = "test") -> Explained | None:
    """A few samples of the split with the best weights of the run; None where nothing was measured."""
    if isinstance(outputs, MaskOutputs):
        return _masks(dataset, folder, outputs.confusions, split) if len(outputs.confusions) else None
    good = len(outputs.logits) and np.isfinite(outputs.logits).all()
    return _classes(dataset, folder, outputs, split) if good else None


def _read(dataset: Dataset, split: str, ids: NDArray[np.int64]) -> tuple[Any, Any, NDArray[np.float32]]:
    images, targets = dataset.splits[split].read(ids)
    return images, targets, normalise(images, dataset.mean, dataset.std)


def _classes(dataset: Dataset, folder: Path, outputs: ClassOutputs, split: str) -> Explained:
    """The most certain errors, and of each class the most certain correct one, in turn until all places are taken."""
    p = softmax(outputs.logits)
    predicted, certain = p.argmax(1), p.max(1)
    wrong = np.flatnonzero(predicted != outputs.labels)
    wrong = wrong[np.argsort(-certain[wrong], kind="stable")][: SHOWN // 2]
    right: list[int] = []
    by_class = []
    for c in range(p.shape[1]):
        hits = np.flatnonzero((predicted == c) & (outputs.labels == c))
        by_class.append(list(hits[np.argsort(-certain[hits], kind="stable")][:SHOWN]))
    for turn in range(SHOWN):
        right += [hits[turn] for hits in by_class if turn < len(hits)]
    ids = np.array([*right[: SHOWN - len(wrong)], *wrong], np.int64)
    images, _, x = _read(dataset, split, ids)
    graph = models.load(folder).graph
    heat = nn.grad_cam(graph, x, predicted[ids])
    names = [short(name, 14) for name in dataset.classes]
    titles = [
        f"{names[predicted[i]]} {p[i].max():.2f}"
        + ("" if predicted[i] == outputs.labels[i] else f"\ntruth {names[outputs.labels[i]]}")
        for i in ids
    ]
    return Explained(images, titles, heat=heat)


def _masks(dataset: Dataset, folder: Path, confusions: NDArray[np.int64], split: str) -> Explained:
    """From the worst to the best by the mean Dice of what is not background."""
    dice, _ = dice_per_image(confusions)
    with np.errstate(invalid="ignore"):
        present = ~np.isnan(dice[:, 1:])
        score = np.where(present, dice[:, 1:], 0).sum(1) / np.maximum(present.sum(1), 1)
    known = np.flatnonzero(present.any(1))
    if not len(known):
        known = np.arange(len(dice))
    order = known[np.argsort(score[known], kind="stable")]
    ids = order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))]
    images, truth, x = _read(dataset, split, ids)
    graph = models.load(folder).graph.fold()
    found = [graph.forward(x[i : i + 1], context=nn.Context(train=False))[0][0].argmax(-1)[0] for i in range(len(ids))]
    titles = [f"{split} {i}, Dice {score[i]:.3f}" for i in ids]
    return Explained(images, titles, truth=truth.astype(np.uint8), predicted=np.stack(found).astype(np.uint8))
