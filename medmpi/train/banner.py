"""The lines printed before the first step: what runs where, on what, and how much memory it will take."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from medmpi import __version__
from medmpi import kernels as K
from medmpi.train.device_step import obstacle

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job


def banner(job: Job, world: World, folder: Path) -> list[str]:
    """One line per subject."""
    o = job.options
    multiply_adds = job.model.macs((1, *job.image))
    h, w, _ = job.image
    local = -(-o.batch_size // job.grid.replicas)
    ranks = f"{world.size} rank{'s' * (world.size > 1)} on {world.nodes} node{'s' * (world.nodes > 1)}"
    norm = _statistics(job)
    image = f"{h}x{w}x{job.dataset.channels}"
    batch = f"global batch {o.batch_size} ({local} per {'rank' if job.grid.replicas == world.size else 'replica'})"
    steps = f"{job.steps_per_epoch} steps per epoch, {o.epochs} epochs"
    lines = [
        f"medmpi {__version__}: {ranks}, {job.threads} thread{'s' * (job.threads > 1)} each, {world.library}",
        f"kernels: {_kernels(job)}" + (f", {norm}" if world.size > 1 else ""),
        f"data: {job.dataset.describe()}",
        *([f"classes: {counts}"] if (counts := job.dataset.describe_classes()) else []),
        f"model: {o.model}, {parameter_count(job)}, input {image}, {multiply_adds / 1e6:,.0f} M MACs",
        f"training: {o.optimizer}, lr {job.base_lr:g} {o.schedule}, {batch}, {steps}",
        f"memory: about {expected_bytes(job, local) / 2**20:,.0f} MiB per rank",
        f"run folder: {folder}",
    ]
    if job.grid.stages * job.grid.tiles > 1:
        lines.insert(2, _layout(job))
    return lines


def _statistics(job: Job) -> str:
    """Over what batch normalisation takes its statistics."""
    if job.statistics is not None or (job.grid.data.size == 1 and job.pipeline.micro_batches == 1):
        return "batch statistics over the whole batch"
    if job.pipeline.micro_batches > 1:
        return "batch statistics per micro-batch"
    return "batch statistics per " + ("rank" if job.grid.stages == 1 else "replica")


def _layout(job: Job) -> str:
    """The grid, where the model is cut, and how batches go through it."""
    if not job.cuts:
        return f"split: {job.grid.describe()}"
    names = ", ".join(job.model.nodes[cut].name for cut in job.cuts)
    n = job.pipeline.micro_batches
    pieces = f"{n} micro-batch{'es' * (n > 1)} ({job.options.pipeline})"
    if n == 1:
        pieces += ", stages work in turn"
    return f"split: {job.grid.describe()}, cut before {names}; {pieces}"


def parameter_count(job: Job) -> str:
    """'11,173,962 parameters', and how many of them are trained where some are frozen."""
    infos = job.model.describe((1, *job.image))
    whole, trained = (sum(i.parameters for i in infos if not (used and i.layer.frozen)) for used in (False, True))
    return f"{whole:,} parameters" + (f" ({trained:,} trained)" if trained != whole else "")


def expected_bytes(job: Job, local_batch: int) -> int:
    """Weights, gradients and optimizer state, and the activations that one rank's batch keeps for backward.

    With stages, of this rank's; the batch's activations are all there at once (not with 1F1B's micro-batches).
    """
    h, w, channels = job.image
    # weights, gradients, momentum; Adam has two moments
    fixed = job.parameters.value.nbytes * (2 + (2 if job.options.optimizer.startswith("adam") else 1))
    fixed += job.parameters.fixed.nbytes  # of frozen layers, without gradients
    edges = [0, *job.cuts, len(job.model)]
    sizes = job.model.shapes((1, h, w, channels))[1:]
    per_image = 4 * sum(prod(shape) for shape in sizes[edges[job.grid.stage] : edges[job.grid.stage + 1]])
    # Gradients of activations and the loader's batches ahead come on top of what forward keeps.
    return int(fixed + per_image / job.grid.tiles * local_batch * 1.3 + 5 * 4 * local_batch * h * w * channels)


def _kernels(job: Job) -> str:
    """What computes: the CPU's instruction set, or the device and its precision."""
    if job.options.device == "cpu":
        return K.backend()
    why = obstacle(job) if job.options.cuda_graph else "--no-cuda-graph"
    steps = "steps in CUDA graphs" if why is None else f"steps kernel by kernel ({why})"
    return f"cuda in {K.precision()} on {', '.join(K.devices())}, {steps}"
