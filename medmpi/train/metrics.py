"""What a classifier or a segmenter is worth, from all samples at once, in float64.

Precision, recall and F1 are macro averages (mean over classes; a class without samples or predictions counts 0 as
scikit-learn's ``zero_division=0``, one with neither is left out). Results check themselves: published tables break the
rules that these numbers must obey (macro F1 above the mean of precision and recall; macro recall other than accuracy on
balanced classes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The measures of one split. Segmentation: of pixels; f1 is the mean Dice, iou the mean intersection over union."""

    samples: int
    loss: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    iou: float
    confusion: Counts  # (classes, classes), rows are true classes
    per_class: dict[str, list[float]]


def confusion_matrix(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> Counts:
    """Counts (classes, classes): row true, column predicted. ValueError where a label is out of range."""
    for name, values in (("labels", labels), ("predicted", predicted)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"confusion_matrix: {name} hold {values.min()}..{values.max()}, expected 0..{classes - 1}")
    if labels.shape != predicted.shape:
        raise ValueError(
            f"confusion_matrix: {labels.shape} labels and {predicted.shape} predictions, expected one each"
        )
    pairs = labels.astype(np.int64).ravel() * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def auc_binary(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Area under the ROC curve by ranks, ties counted half; NaN where only one class is present."""
    ranks = _midranks(score)
    n1 = int(positive.sum())
    n0 = positive.size - n1
    if n1 == 0 or n0 == 0 or not np.isfinite(score).all():
        return float("nan")
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def auc_macro(labels: NDArray[np.integer], logits: NDArray[np.floating], probabilities: NDArray[np.floating]) -> float:
    """Two classes: of class 1. More: mean of one-versus-rest over the classes that are present beside others."""
    classes = probabilities.shape[1]
    if classes == 2:  # the log-odds order the samples as p does, and ties survive in them
        return auc_binary(labels == 1, logits[:, 1].astype(np.float64) - logits[:, 0])
    areas = [auc_binary(labels == c, probabilities[:, c]) for c in range(classes)]
    known = [a for a in areas if np.isfinite(a)]
    return float(np.mean(known)) if known else float("nan")


def from_confusion(confusion: Counts, *, loss: float, auc: float, samples: int) -> Scores:
    """All scores that follow from a confusion matrix; RuntimeError where they contradict each other."""
    matrix = confusion.astype(np.float64)
    hit, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    present = (true + predicted) > 0
    precision = _ratio(hit, predicted)
    recall = _ratio(hit, true)
    f1 = _ratio(2 * hit, true + predicted)
    iou = _ratio(hit, true + predicted - hit)
    total = matrix.sum()
    scores = Scores(
        samples=samples,
        loss=float(loss),
        accuracy=float(hit.sum() / total) if total else float("nan"),
        precision=_mean(precision, present),
        recall=_mean(recall, present),
        f1=_mean(f1, present),
        auc=auc,
        iou=_mean(iou, present),
        confusion=confusion,
        per_class={
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f1": f1.tolist(),
            "iou": iou.tolist(),
            "support": true.tolist(),
        },
    )
    check(scores)
    return scores


def classification(
    labels: NDArray[np.integer], logits: NDArray[np.floating], weight: Reals | None = None, gamma: float = 0.0
) -> Scores:
    """Scores of logits (n, classes) against labels (n,); the loss is the (weighted, focal) mean cross-entropy.

    The prediction is the first largest logit. Non-finite logits give a NaN loss and AUC, never an exception.
    """
    n, classes = logits.shape
    wide = logits.astype(np.float64)
    if n == 0:
        return from_confusion(np.zeros((classes, classes), np.int64), loss=float("nan"), auc=float("nan"), samples=0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted = wide - wide.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        weights = np.ones(n) if weight is None else np.asarray(weight, np.float64)[labels]
        loss = float((weights * focal(log_p[np.arange(n), labels], gamma)).sum() / weights.sum())
    predicted = wide.argmax(1)
    return from_confusion(
        confusion_matrix(labels, predicted, classes), loss=loss, auc=auc_macro(labels, logits, np.exp(log_p)), samples=n
    )


def focal(log_p: Reals, gamma: float) -> Reals:
    """``-(1 - p)^gamma log p`` of each log p; plain ``-log p`` for gamma 0."""
    losses: Reals = -log_p if gamma == 0 else (-np.expm1(log_p)) ** gamma * -log_p
    return losses


def check(scores: Scores) -> None:
    """RuntimeError where the numbers break an identity that every correct computation keeps."""
    slack = 1e-9
    if scores.f1 > (scores.precision + scores.recall) / 2 + slack:
        raise RuntimeError(
            f"metrics: macro F1 {scores.f1} exceeds the mean of precision {scores.precision} and recall {scores.recall}"
        )
    support = scores.confusion.sum(1)
    if support.size and support.min() == support.max() > 0 and abs(scores.recall - scores.accuracy) > slack:
        raise RuntimeError(
            f"metrics: classes are balanced but macro recall {scores.recall} differs from accuracy {scores.accuracy}"
        )


def _midranks(score: NDArray[np.floating]) -> Reals:
    """Ranks from 1, equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Reals = (last - (counts - 1) / 2)[inverse]
    return ranks


def _ratio(above: Reals, below: Reals) -> Reals:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _mean(values: Reals, present: NDArray[np.bool_]) -> float:
    return float(values[present].mean()) if present.any() else float("nan")
