"""The lines printed before the first step: what runs where, on what, and how much memory it will take."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from medmpi import __version__
from medmpi import kernels as K

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job


def banner(job: Job, world: World, folder: Path) -> list[str]:
    """One line per subject."""
    o = job.options
    multiply_adds = job.graph.macs((1, *job.dataset.image_size, job.dataset.channels))
    h, w = job.dataset.image_size
    local = -(-o.batch_size // world.size)
    ranks = f"{world.size} rank{'s' * (world.size > 1)} on {world.nodes} node{'s' * (world.nodes > 1)}"
    norm = "batch statistics over all ranks" if job.statistics is not None else "batch statistics per rank"
    image = f"{h}x{w}x{job.dataset.channels}"
    batch = f"global batch {o.batch_size} ({local} per rank)"
    steps = f"{job.steps_per_epoch} steps per epoch, {o.epochs} epochs"
    return [
        f"medmpi {__version__}: {ranks}, {job.threads} thread{'s' * (job.threads > 1)} each, {world.library}",
        f"kernels: {K.backend()}" + (f", {norm}" if world.size > 1 else ""),
        f"data: {job.dataset.describe()}",
        *([f"classes: {counts}"] if (counts := job.dataset.describe_classes()) else []),
        f"model: {o.model}, {parameter_count(job)}, input {image}, {multiply_adds / 1e6:,.0f} M MACs",
        f"training: {o.optimizer}, lr {job.base_lr:g} {o.schedule}, {batch}, {steps}",
        f"memory: about {expected_bytes(job, local) / 2**20:,.0f} MiB per rank",
        f"run folder: {folder}",
    ]


def parameter_count(job: Job) -> str:
    """'11,173,962 parameters', and how many of them are trained where some are frozen."""
    whole = sum(info.parameters for info in job.graph.describe((1, *job.dataset.image_size, job.dataset.channels)))
    trained = len(job.parameters)
    return f"{whole:,} parameters" + (f" ({trained:,} trained)" if trained != whole else "")


def expected_bytes(job: Job, local_batch: int) -> int:
    """Weights, gradients and optimizer state, and the activations that one rank's batch keeps for backward."""
    h, w = job.dataset.image_size
    # weights, gradients, momentum; Adam has two moments
    fixed = job.parameters.value.nbytes * (2 + (2 if job.options.optimizer.startswith("adam") else 1))
    per_image = 4 * sum(prod(shape) for shape in job.graph.shapes((1, h, w, job.dataset.channels)))
    # Gradients of activations and the loader's batches ahead come on top of what forward keeps.
    return int(fixed + per_image * local_batch * 1.3 + 5 * 4 * local_batch * h * w * job.dataset.channels)
