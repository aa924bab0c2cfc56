"""What a clinician asks of a finished model: with what certainty, at which threshold, how well calibrated.

Everything that is chosen (threshold, temperature, epoch) is chosen on validation and measured on test.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.evaluation import (
    Calibration,
    Interval,
    Match,
    OperatingPoint,
    apply_threshold,
    average_precision,
    bootstrap,
    calibrate,
    choose_threshold,
    delong,
    dice_per_image,
    softmax,
    wilson,
)
from medmpi.train.evaluate import ClassOutputs, MaskOutputs, Outputs

RULES = {
    "default (0.5)": None,
    "Youden": ("youden", 0.0),
    "most correct": ("accuracy", 0.0),
    "sensitivity 95 %": ("sensitivity", 0.95),
    "specificity 95 %": ("specificity", 0.95),
}
_WORK = 1e8  # samples x classes x resamples: some ten seconds
_FEWEST = 50  # resamples that make an interval
_COLUMNS = 50  # classes with a column of probabilities each in predictions.csv


@dataclass
class Assessment:
    """Of the test split. Intervals are 95 %. What does not apply to the task or cannot be had is left empty."""

    samples: int
    accuracy: Interval | None = None
    auc: dict[str, Interval] = field(default_factory=dict)
    """By class (one against the rest; with two classes of the second alone), DeLong; "mean" by bootstrap."""
    average_precision: dict[str, Interval] = field(default_factory=dict)
    points: dict[str, OperatingPoint] = field(default_factory=dict)
    """Two classes: for each rule, the threshold of the second class's probability from validation, on test."""
    calibration: Calibration | None = None
    dice: dict[str, Interval] = field(default_factory=dict)
    """Segmentation, by class: mean over images that have it in truth or prediction; "foreground" over all but the first
    class."""
    iou: dict[str, Interval] = field(default_factory=dict)
    dice_by_group: dict[str, Interval] = field(default_factory=dict)
    """As ``dice``, but of all pixels of a patient or volume at once, where the data tell: the mean over those."""
    objects: dict[str, Match] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Numbers alone, for evaluation.json."""
        found = asdict(self)
        for name, match in self.objects.items():
            found["objects"][name] |= {"f1": match.f1, "dice": match.dice, "panoptic_quality": match.panoptic_quality}
        return found


def assess(
    classes: Sequence[str], test: Outputs, val: Outputs | None, groups: Sequence[str] | None = None
) -> Assessment:
    """The assessment of the outputs of test, with what is chosen on those of validation.

    ``groups`` says whose each sample of test is. Where somebody has several, intervals come from resamples of patients,
    not of samples.
    """
    clusters: NDArray[np.int64] | None = None
    if groups is not None and 1 < len(set(groups)) < len(groups):
        clusters = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    if isinstance(test, MaskOutputs):
        return _segmentation(classes, test.confusions, test.matches, clusters)
    return _classification(classes, test.labels, test.logits, val if isinstance(val, ClassOutputs) else None, clusters)


def _classification(
    classes: Sequence[str],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    val: ClassOutputs | None,
    clusters: NDArray[np.int64] | None,
) -> Assessment:
    n, k = logits.shape
    right = logits.argmax(1) == labels
    found = Assessment(n, accuracy=wilson(int(right.sum()), n))
    if clusters is not None:
        found.accuracy = bootstrap(lambda i: float(right[i].mean()), labels, clusters=clusters, samples=300)
    if not np.isfinite(logits).all():
        return found
    scores = _scores(logits)
    columns = [1] if k == 2 else list(range(k))
    samples = _resamples(n * k, 300)
    for c in columns:
        positive = labels == c
        if not positive.any() or positive.all():
            continue
        found.auc[classes[c]] = delong(positive, scores[:, c])
        if clusters is not None:

            def area(
                i: NDArray[np.int64], p: NDArray[np.bool_] = positive, s: NDArray[np.float64] = scores[:, c]
            ) -> float:
                return delong(p[i], s[i]).value

            found.auc[classes[c]] = bootstrap(area, labels, clusters=clusters, samples=samples)

        def precision(
            i: NDArray[np.int64], p: NDArray[np.bool_] = positive, s: NDArray[np.float64] = scores[:, c]
        ) -> float:
            return average_precision(p[i], s[i])

        found.average_precision[classes[c]] = bootstrap(precision, labels, clusters=clusters, samples=samples)
    if k > 2 and len(found.auc) > 1:
        present = [c for c in columns if classes[c] in found.auc]

        def mean(i: NDArray[np.int64]) -> float:
            return float(np.mean([delong(labels[i] == c, scores[i, c]).value for c in present]))

        found.auc["mean"] = bootstrap(mean, labels, clusters=clusters, samples=_resamples(n * k, 200))
    if val is not None and len(val.labels) and np.isfinite(val.logits).all():
        if n:
            found.calibration = calibrate(val.logits, val.labels, (logits, labels))
        if k == 2:
            found.points = _points(val.labels, val.logits, labels, logits)
    return found


def _scores(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """What orders the samples by class: probabilities; with two classes the log-odds, in which ties do not arise."""
    if logits.shape[1] == 2:
        odds = logits[:, 1].astype(np.float64) - logits[:, 0]
        return np.stack([-odds, odds], 1)
    return softmax(logits)


def _points(
    val_labels: NDArray[np.int64],
    val_logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
) -> dict[str, OperatingPoint]:
    """Thresholds are found among log-odds, where samples stay apart, and given as probabilities."""
    positive = val_labels == 1
    if positive.all() or not positive.any():
        return {}
    odds, ours = _scores(val_logits)[:, 1], _scores(logits)[:, 1]
    points = {}
    for name, rule in RULES.items():
        at = 0.0 if rule is None else choose_threshold(positive, odds, rule[0], at_least=rule[1])
        probability = 1 / (1 + math.exp(-at)) if abs(at) < 700 else float(at > 0)
        points[name] = replace(apply_threshold(labels == 1, ours, at), threshold=probability)
    return points


def _segmentation(
    classes: Sequence[str],
    confusions: NDArray[np.int64],
    matches: NDArray[np.float64],
    clusters: NDArray[np.int64] | None,
) -> Assessment:
    n = len(confusions)
    found = Assessment(n)
    dice, iou = dice_per_image(confusions)
    measured = [(dice, found.dice, clusters), (iou, found.iou, clusters)]
    if clusters is not None:
        sums = np.zeros((clusters.max() + 1, *confusions.shape[1:]), np.int64)
        np.add.at(sums, clusters, confusions)
        measured.append((dice_per_image(sums)[0], found.dice_by_group, None))
    for values, into, whose in measured:
        for k, name in enumerate(classes):
            into[name] = _mean_over_images(values[:, k : k + 1], whose)
        if len(classes) > 2:
            into["foreground"] = _mean_over_images(values[:, 1:], whose)
    for k, name in enumerate(classes[1:], 1):
        truth, predicted, matched, dice_sum, iou_sum = (float(v) for v in matches[:, k].sum(0))
        found.objects[name] = Match(int(truth), int(predicted), int(matched), dice_sum, iou_sum)
    return found


def _mean_over_images(values: NDArray[np.float64], clusters: NDArray[np.int64] | None) -> Interval:
    """The mean over classes of the means over images (n, classes), NaN left out; resampled by image or patient."""

    def mean(i: NDArray[np.int64]) -> float:
        drawn = values[i]
        present = ~np.isnan(drawn)
        counts = present.sum(0)
        if not counts.any():
            return math.nan
        sums = np.where(present, drawn, 0.0).sum(0)
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    strata = np.zeros(len(values), np.int64)
    return bootstrap(mean, strata, clusters=clusters, samples=_resamples(values.size, 1000))


def _resamples(work: int, most: int) -> int:
    """How many resamples of so much work; none, and so no interval, where only few could be had."""
    samples = min(most, int(_WORK / max(work, 1)))
    return samples if samples >= _FEWEST else 0


def predictions_csv(
    classes: Sequence[str],
    splits: Mapping[str, Outputs],
    temperature: float | None,
    groups: Mapping[str, Sequence[str] | None] | None = None,
) -> str:
    """Every sample: split, id, true and predicted class, probabilities, and calibrated ones where there are some.

    With many classes only the probabilities of the predicted and the true one; with ``groups`` whose a sample is.
    """
    whose = {name: found for name, found in (groups or {}).items() if found is not None}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"p({name})" for name in classes] if len(classes) <= _COLUMNS else ["p(predicted)", "p(label)"]
    calibrated = [f"calibrated {name}" for name in names] if temperature else []
    writer.writerow(["split", "id", *(["group"] if whose else []), "label", "predicted", *names, *calibrated])
    for name, outputs in splits.items():
        if not isinstance(outputs, ClassOutputs):
            continue
        p = softmax(outputs.logits)
        q = softmax(outputs.logits, temperature) if temperature else p[:, :0]
        for i, label in enumerate(outputs.labels):
            predicted = int(p[i].argmax())
            shown: Sequence[int] | slice = slice(None) if len(classes) <= _COLUMNS else [predicted, int(label)]
            values = [*p[i, shown], *(q[i, shown] if temperature else ())]
            group = [whose[name][i] if name in whose else ""] if whose else []
            writer.writerow([name, i, *group, classes[label], classes[predicted], *(f"{v:.6g}" for v in values)])
    return out.getvalue()
