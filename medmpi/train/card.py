"""model_card.md (Mitchell et al. 2019): what a trained model is, what it was measured on, and where not to trust it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import __version__
from medmpi.data import Dataset
from medmpi.evaluation import Interval
from medmpi.train.assess import Assessment

_PACKAGES = ("numpy", "mpi4py", "safetensors")
_FEW, _RARE, _GAP = 100, 0.1, 0.1


def model_card(
    title: str,
    facts: Sequence[tuple[str, str]],
    dataset: Dataset,
    counts: Mapping[str, NDArray[np.int64]],
    test: Mapping[str, Any] | None,
    train_accuracy: float,
    found: Assessment | None,
    weights: Path,
) -> str:
    """The card as Markdown. ``weights`` is the file whose checksum identifies the model."""
    parts = [f"# Model card: {title}", "", "A network trained by medmpi. For research; it is not a medical device.", ""]
    parts += _table(["", ""], [[name, value] for name, value in facts])
    parts += _table(["file", "SHA-256"], [[f"checkpoints/{weights.name}", _sha256(weights)]])
    parts += ["## Data", "", dataset.describe(), ""]
    unit = "pixels" if dataset.task == "segmentation" else "samples"
    parts += _table(
        [f"{unit} of class", *counts],
        [[name, *(f"{int(values[k]):,}" for values in counts.values())] for k, name in enumerate(dataset.classes)],
    )
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (dataset.mean, dataset.std))
    parts += [f"Input: (pixels / 255 - mean) / std with mean {mean} and std {std} of the training split.", ""]
    if test is not None:
        parts += [f"## Test split: {test['samples']:,} samples, weights of epoch {test['epoch']}", ""]
        names = [n for n in ("loss", "accuracy", "precision", "recall", "f1", "auc", "iou") if _number(test.get(n))]
        parts += _table(names, [[f"{test[name]:.4f}" for name in names]])
    if found is not None:
        parts += measured(found)
    parts += ["## Caution", "", *(f"- {line}" for line in cautions(dataset, counts, test, train_accuracy, found)), ""]
    versions = [f"medmpi {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if _installed(name)]
    parts += ["## Versions", "", ", ".join(versions) + f"; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", ""]
    parts += ["The settings are in config.toml, every epoch in metrics.csv, every prediction in predictions.csv."]
    return "\n".join(parts) + "\n"


def measured(found: Assessment) -> list[str]:
    """The assessment as tables; 95 % intervals."""
    lines: list[str] = []
    rows = [] if found.accuracy is None else [["accuracy", str(found.accuracy), found.accuracy.method]]
    rows += [[f"area under the ROC curve, {name}", str(i), i.method] for name, i in found.auc.items()]
    rows += [[f"average precision, {name}", str(i), i.method] for name, i in found.average_precision.items()]
    rows += [[f"Dice per image, {name}", str(i), i.method] for name, i in found.dice.items()]
    rows += [[f"Dice per patient or volume, {name}", str(i), i.method] for name, i in found.dice_by_group.items()]
    rows += [[f"IoU per image, {name}", str(i), i.method] for name, i in found.iou.items()]
    lines += _table(["measure", "value (95 % interval)", "method"], rows) if rows else []
    head, rows = points_table(found)
    if rows:
        lines += ["Thresholds chosen on validation, measured on test:", "", *_table(head, rows)]
    head, rows = objects_table(found)
    lines += _table(head, rows) if rows else []
    if found.calibration is not None:
        c = found.calibration
        lines += [
            f"Calibration (temperature {c.temperature:.3f} from validation): expected calibration error "
            f"{c.ece_before:.4f}, with temperature {c.ece_after:.4f}; Brier {c.brier_before:.4f}, {c.brier_after:.4f}; "
            f"negative log-likelihood {c.nll_before:.4f}, {c.nll_after:.4f}.",
            "",
        ]
    return lines


def points_table(found: Assessment) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the operating points."""
    head = ["operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV", "accuracy"]
    rows = []
    for name, p in found.points.items():
        rates = (p.sensitivity, p.specificity, p.ppv, p.npv, p.accuracy)
        rows.append([name, f"{p.threshold:.4f}", *(_rate(rate) for rate in rates)])
    return head, rows


def objects_table(found: Assessment) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the objects that were found and missed: connected regions, IoU above a half."""
    head = ["objects of", "in truth", "predicted", "matched", "F1", "mean Dice", "panoptic quality"]
    rows = []
    for name, m in found.objects.items():
        figures = ["–" if not _number(v) else f"{v:.4f}" for v in (m.f1, m.dice, m.panoptic_quality)]
        rows.append([name, f"{m.truth:,}", f"{m.predicted:,}", f"{m.matched:,}", *figures])
    return head, rows


def cautions(
    dataset: Dataset,
    counts: Mapping[str, NDArray[np.int64]],
    test: Mapping[str, Any] | None,
    train_accuracy: float,
    found: Assessment | None,
) -> list[str]:
    """What the numbers do not say, from this run's own numbers."""
    lines = []
    if test is None:
        lines.append("There is no test split: nothing here says how the model does on new data.")
    elif test["samples"] < _FEW:
        lines.append(f"The test split has {test['samples']} samples only: look at the intervals, not at the values.")
    train = counts.get("train")
    if train is not None and train.sum():
        shares = train / train.sum()
        rare = [f"{n} ({s:.1%})" for n, s in zip(dataset.classes, shares, strict=True) if s < _RARE / len(shares) * 2]
        if rare:
            lines.append(f"Rare in training: {', '.join(rare)}; accuracy says little about them, see recall by class.")
    if test is not None and _number(train_accuracy) and train_accuracy - test["accuracy"] >= _GAP:
        gap = 100 * (train_accuracy - test["accuracy"])
        lines.append(f"Training accuracy is {gap:.0f} points above test accuracy: the model overfits.")
    if found is not None and found.calibration is not None and found.calibration.ece_before > 0.05:
        lines.append("The probabilities are not calibrated: divide the logits by the temperature before using them.")
    if dataset.splits["train"].groups is None:
        lines.append("The data do not say whose each sample is: images of one patient may be in several splits.")
    lines.append("Epoch, thresholds and temperature were chosen on validation; other scanners and populations differ.")
    return lines


def _rate(rate: Interval) -> str:
    return "–" if not _number(rate.value) else f"{rate.value:.3f} ({rate.low:.3f}–{rate.high:.3f})"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows), ""]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
