"""Gathers what the report shows from a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmpi import __version__
from medmpi import kernels as K
from medmpi.data import class_counts, examples
from medmpi.train.banner import parameter_count
from medmpi.train.progress import clock
from medmpi.train.report import Content
from medmpi.train.state import Position

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job


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
