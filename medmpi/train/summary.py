"""Gathers what the report shows from a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmpi import __version__
from medmpi import kernels as K
from medmpi.data import class_counts, examples
from medmpi.files import write_whole
from medmpi.models.saved import find
from medmpi.train.assess import Assessment, assess, predictions_csv
from medmpi.train.banner import parameter_count
from medmpi.train.card import model_card
from medmpi.train.evaluate import Outputs
from medmpi.train.explain import explain
from medmpi.train.log import finite, read_metrics
from medmpi.train.progress import clock
from medmpi.train.report import Content, write_report
from medmpi.train.state import Position

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job


def summarise(
    job: Job,
    world: World,
    folder: Path,
    test: Mapping[str, Any] | None,
    position: Position,
    outputs: Mapping[str, Outputs],
) -> list[str]:
    """Writes evaluation.json, predictions.csv, model_card.md and report.html; lines for the user. On rank 0 alone."""
    content = report_content(job, world, folder, test, position)
    classes, lines = job.dataset.classes, []
    if test is not None:
        content.outputs = outputs["test"]
        content.assessment = found = assess(
            classes, outputs["test"], outputs.get("val"), job.dataset.splits["test"].groups
        )
        content.explained = explain(job.dataset, folder, outputs["test"])
        write_whole(
            folder / "evaluation.json", json.dumps(finite({"epoch": test["epoch"], **found.to_json()}), indent=1) + "\n"
        )
        lines = _tell(found)
    if job.dataset.task == "classification" and outputs:
        groups = {name: split.groups for name, split in job.dataset.splits.items()}
        calibration = content.assessment.calibration if content.assessment is not None else None
        t = calibration.temperature if calibration is not None else None
        write_whole(folder / "predictions.csv", predictions_csv(classes, outputs, t, groups))
    rows = [row for row in read_metrics(folder / "metrics.csv") if int(row["epoch"]) == position.best_epoch]
    train_accuracy = float(rows[0]["train_accuracy"] or "nan") if rows else float("nan")
    card = model_card(
        content.title,
        content.facts,
        job.dataset,
        content.counts,
        test,
        train_accuracy,
        content.assessment,
        find(folder),
    )
    write_whole(folder / "model_card.md", card)
    write_report(folder, content)
    return lines


def _tell(found: Assessment) -> list[str]:
    """The main figures with their 95 % intervals."""
    parts = [f"accuracy {found.accuracy}"] if found.accuracy is not None else []
    if found.auc:
        name = "mean" if "mean" in found.auc else next(iter(found.auc))
        parts.append(f"auc {found.auc[name]}")
    if found.points:
        point = found.points["Youden"]
        parts.append(f"at the threshold {point.threshold:.3f} of validation: accuracy {point.accuracy}")
    if found.dice:
        name = "foreground" if "foreground" in found.dice else list(found.dice)[-1]
        parts.append(f"mean Dice per image of {name} {found.dice[name]}")
        if found.dice_by_group:
            parts.append(f"per patient or volume {found.dice_by_group[name]}")
    return [f"95 % intervals: {', '.join(parts)}"] if parts else []


def report_content(job: Job, world: World, folder: Path, test: Mapping[str, Any] | None, position: Position) -> Content:
    """Everything but the metrics of the epochs, which the report reads from their file."""
    dataset, o = job.dataset, job.options
    segmentation = dataset.task == "segmentation"
    groups = examples(dataset, "train", per_class=16 if segmentation else max(1, 16 // len(dataset.classes)))
    images = np.concatenate([pictures for _, pictures, _ in groups])
    titles = [name if not segmentation else "" for name, pictures, _ in groups for _ in pictures]
    masks = np.concatenate([targets for _, _, targets in groups]).astype(np.uint8) if segmentation else None
    best = f"epoch {position.best_epoch}" if position.best_epoch else "–"
    facts = [
        ("data", dataset.describe()),
        ("model", f"{o.model}, {parameter_count(job)}"),
        ("ranks", f"{world.size} on {world.nodes} node(s), {job.threads} thread(s) each, {world.library}"),
        ("kernels", K.backend()),
        ("steps", f"{position.step:,} of {o.batch_size} images, {position.epoch} epochs finished, best {best}"),
        ("time", f"{clock(position.seconds)} of training and validation"),
        ("medmpi", __version__),
    ]
    splits = {name: class_counts(dataset, name) for name in ("train", "val", "test") if len(dataset.splits[name])}
    return Content(
        title=f"{o.model} on {dataset.name}",
        classes=dataset.classes,
        counts=splits,
        test=test,
        images=images,
        image_titles=titles,
        masks=masks,
        facts=facts,
        segmentation=segmentation,
        settings=(folder / "config.toml").read_text(encoding="utf-8"),
    )
