"""What a run is made of, built from its settings: data, network, optimizer, schedule, loss, gradient exchange."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import models, nn, parallel
from medmpi.data import Augment, Batch, DataError, Dataset, Task, Transform, class_counts, open_dataset
from medmpi.train import device
from medmpi.train.adapt import Adaptation
from medmpi.train.config import parse_augment
from medmpi.train.device_feed import Staging
from medmpi.train.failure import BAD_DATA, USAGE, Failure, together
from medmpi.train.initial import freeze, layer_rates
from medmpi.train.local import LocalUpdates
from medmpi.train.options import Options
from medmpi.train.planning import planned
from medmpi.train.rate import Rate
from medmpi.train.slow import slow_down
from medmpi.train.split import Tiling, choose_cuts, make_grid, make_pipeline

if TYPE_CHECKING:
    from medmpi.parallel import (
        Balance,
        ExactSums,
        GradientBuckets,
        Grid,
        NodeUpdate,
        Pipeline,
        RankStatistics,
        StagedGradients,
        World,
    )

_TASKS: dict[str, Task | None] = {"auto": None, "classification": "classification", "segmentation": "segmentation"}
# Most images lack most classes: with a tiny smoothing the loss pays for predicting nothing but background.
_SMOOTH = 1.0
_EPOCHS, _MOST_EPOCHS = 8, 60
_STEPS, _MANY, _UNET_WIDTH = 250, 640, 32  # of segmentation
_PARTS = 32  # of a batch, with --reproducible
DEFAULT_LR = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}


@dataclass
class Job:
    """One rank's part of a run: ``graph`` and ``parameters`` are those of its stage, ``model`` is the whole network."""

    options: Options
    dataset: Dataset
    grid: Grid
    model: nn.Graph
    cuts: list[int]
    tiling: Tiling | None
    graph: nn.Graph
    pipeline: Pipeline
    parameters: nn.Parameters
    optimizer: nn.optim.Optimizer
    update: NodeUpdate
    rate: Rate
    adapt: Adaptation
    local: LocalUpdates
    criterion: nn.Loss
    buckets: GradientBuckets | StagedGradients | ExactSums
    statistics: RankStatistics | None
    class_weights: NDArray[np.float64] | None
    base_lr: float
    threads: int
    world: World
    augment: Augment | None
    balance: Balance
    staging: Staging | None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.dataset.splits["train"]) // self.options.batch_size)

    @property
    def image(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.dataset.image_size, self.dataset.channels)

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model."""
        return sum(prod(spec.shape) for node in self.model.nodes for spec in node.layer.parameter_specs().values())

    def signature(self) -> str:
        """The model as a checkpoint must match it."""
        h, w, channels = self.image
        count = self.parameter_count
        shape = f"{h}x{w}x{channels}"
        return f"{self.options.model} {shape}, {len(self.dataset.classes)} classes, {count} parameters"

    def spec(self) -> models.ModelSpec:
        """The model as a checkpoint describes it to whoever uses it later."""
        o, data = self.options, self.dataset
        options = {name: getattr(o, name) for name in ("stem", "dropout", "width")}
        return models.ModelSpec(
            name=o.model,
            task=data.task,
            classes=data.classes,
            channels=data.channels,
            image_size=data.image_size,
            mean=tuple(float(value) for value in data.mean),
            std=tuple(float(value) for value in data.std),
            options={name: value for name, value in options.items() if value is not None},
            reading=None if data.reading is None else data.reading.to_json(),
        )

    def transform(self, epoch: int) -> Transform | None:
        """The augmentation of an epoch; None if there is none."""
        return None if self.augment is None else self.augment.at(self.options.seed, epoch)

    def divisors(self, batch: Batch, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the loss of the global batch `ids` is divided by, the same on all ranks that compute it."""
        if self.dataset.task == "classification":
            return self.criterion.denominators(self.dataset.splits["train"].labels[ids])
        if not self.grid.last:
            return np.zeros(2)
        # The other ranks' masks are not here: one small sum over ranks.
        return self.grid.data.sum(self.criterion.denominators(self.local_labels(batch.labels)))

    def local_labels(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of the labels that this rank's logits are for: some rows of masks where images are split."""
        return labels if self.tiling is None else self.tiling.labels(labels)


def build_job(options: Options, world: World) -> Job:
    """Builds the job on every rank; Failure with one line and exit code where settings and data do not fit."""
    if options.threads is not None:
        K.set_threads(options.threads)
    together(world, lambda: device.take(options.device, options.precision, world.local_rank))
    loud = world.rank == 0 and not options.quiet
    dataset = together(world, lambda: open_data(options, _say if loud else None))
    options = settle(options, dataset.task, len(dataset.splits["train"]))
    world.reproducible = options.reproducible
    model = together(world, lambda: network_of(options, dataset))
    image = (*dataset.image_size, dataset.channels)
    if options.parallel == "auto":
        options = planned(options, model, image, world)
    grid = make_grid(options, world)
    _check_batch(options, grid)
    train = len(dataset.splits["train"])
    if grid.replicas > train:
        raise Failure(f"{grid.replicas} replicas for {train} training samples, expected at most one per sample", USAGE)
    unit = part_of(options.batch_size) if options.reproducible else 1
    cuts = choose_cuts(options, model, image, grid)
    tiling = together(world, lambda: Tiling(model, image, grid)) if grid.tiles > 1 else None
    graph, pipeline = make_pipeline(options, model, cuts, image, grid, unit, tiling)
    on_device = options.device != "cpu"
    allocate = None if on_device else grid.data.allocate
    parameters = nn.Parameters(graph, seed=options.seed, allocate=allocate, device=options.device)
    # Weights come from (seed, name) on every rank; ranks with another numpy or other sources would differ here.
    grid.data.agree({"initial weights (checksum)": zlib.crc32(K.to_host(parameters.value).data)})
    weights = _class_weights(options, dataset)
    weight = None if weights is None else weights.astype(np.float32)
    gamma = options.focal_gamma
    criterion: nn.Loss = nn.CrossEntropy(weight, gamma=gamma)
    if dataset.task == "segmentation":
        rows = None if tiling is None else tiling.exchange
        criterion = nn.DiceCrossEntropy(weight, smooth=_SMOOTH, gamma=gamma, rows=rows)
    exact = nn.ExactGradients(parameters, unit) if options.reproducible else None
    several = grid.data.size > 1 or pipeline.micro_batches > 1
    joint = options.sync_batchnorm and not options.average_every and (several or options.reproducible)
    given_lr = options.lr or DEFAULT_LR[options.optimizer]
    reference = options.scale_lr_from
    base_lr = given_lr * options.batch_size * options.accumulate / reference if reference else given_lr
    buckets = parallel.StagedGradients if on_device else parallel.GradientBuckets
    optimizer = together(world, lambda: _optimizer(options, model, parameters, base_lr))
    together(world, lambda: slow_down(graph, world))
    return Job(
        options=options,
        dataset=dataset,
        grid=grid,
        model=model,
        cuts=cuts,
        tiling=tiling,
        graph=graph,
        pipeline=pipeline,
        parameters=parameters,
        optimizer=optimizer,
        update=parallel.NodeUpdate(parameters, optimizer, grid.data, active=not (options.average_every or on_device)),
        rate=Rate(options, base_lr, -(-train // options.batch_size), given_lr if reference else 0.0),
        adapt=Adaptation(options, parameters.value.size),
        local=LocalUpdates(world, parameters, optimizer, options.average_every),
        criterion=criterion,
        buckets=(parallel.ExactSums(exact, grid.data) if exact else buckets(parameters, grid.data, wire=options.wire)),
        statistics=parallel.RankStatistics(grid.data) if joint else None,
        class_weights=weights,
        base_lr=base_lr,
        threads=K.threads(),
        world=world,
        augment=together(world, lambda: _augment(options, dataset)),
        balance=parallel.Balance(grid.copies, options.batch_size, unit=unit, active=options.balance),
        staging=Staging() if on_device else None,
    )


def settle(options: Options, task: Task, samples: int) -> Options:
    """The settings with what was left to the task and the number of training samples filled in.

    Segmentation takes Adam and small batches: its images hold thousands of samples, most of them background, and with
    few steps SGD stays at predicting nothing else. Its data sets are small, so that it takes as many epochs as make
    enough steps; and half of the published U-Net's channels: a quarter of the time, for the same masks on data like
    these (README, results).
    """
    dense = task == "segmentation"
    optimizer = (
        ("adam" if dense and not options.nesterov else "sgd") if options.optimizer == "auto" else options.optimizer
    )
    batch_size = options.batch_size or ((16 if samples >= _MANY else 8) if dense else 64)
    enough = -(-_STEPS // -(-samples // batch_size)) if dense else 0
    epochs = options.epochs or min(max(_EPOCHS, enough), _MOST_EPOCHS)
    width = _UNET_WIDTH if options.width is None and options.model == "unet" else options.width
    return replace(options, optimizer=optimizer, batch_size=batch_size, epochs=epochs, width=width)


def part_of(batch_size: int) -> int:
    """Samples of a part of ``nn.ExactGradients``: small enough to be shared out evenly, and the same for all ranks."""
    return max(1, batch_size // _PARTS)


def _check_batch(options: Options, grid: Grid) -> None:
    if options.balance and not options.sync_batchnorm and grid.replicas > 1:
        raise Failure(
            "--balance needs --sync-batchnorm: batch statistics per rank would depend on who is fast just now", USAGE
        )
    if options.balance and grid.replicas < grid.world.size:
        raise Failure("--balance needs --stages 1 and --tiles 1: all ranks of a replica have the same share", USAGE)
    unit = part_of(options.batch_size) if options.reproducible else 1
    if grid.replicas * unit > options.batch_size:
        needs = "one image" if unit == 1 else f"{unit} images with --reproducible"
        who = "rank" if grid.replicas == grid.world.size else "replica"
        raise Failure(
            f"{grid.replicas} {who}s share a --batch-size of {options.batch_size}, expected at least {needs} per {who}",
            USAGE,
        )


def _say(line: str) -> None:
    print(line, flush=True)


def open_data(options: Options, say: Callable[[str], None] | None = None) -> Dataset:
    """The data that the settings name; Failure where it cannot be used or does not fit the model.

    ``say`` is told how far a long opening is.
    """
    size = options.image_size
    try:
        dataset = open_dataset(
            options.data,
            task=_TASKS[options.task],
            image_size=None if size is None else (size[0], size[-1]),
            seed=options.seed,
            val_fraction=options.val_fraction,
            say=say,
        )
    except DataError as error:
        raise Failure(str(error), BAD_DATA) from error
    except ValueError as error:
        raise Failure(f"--data {options.data}: {str(error).removeprefix('open_dataset: ')}", USAGE) from error
    if len(dataset.splits["train"]) == 0:
        raise Failure(f"--data {options.data}: the training split is empty", BAD_DATA)
    if (dataset.task == "segmentation") != (options.model == "unet"):
        expected = "unet" if dataset.task == "segmentation" else "a classifier such as resnet18, or --task segmentation"
        raise Failure(f"--model {options.model} does not fit {dataset.task} data, expected {expected}", USAGE)
    return dataset


def _augment(options: Options, dataset: Dataset) -> Augment | None:
    h, w = dataset.image_size
    text = f"flip,crop:{max(1, min(h, w) // 16)}" if options.augment == "auto" else options.augment
    names = {"rotate": "rotate_degrees", "color": "colour"}
    wanted = parse_augment(text)
    if not wanted:
        return None
    try:
        return Augment(
            crop_padding=int(wanted.pop("crop", 0)),
            horizontal_flip=wanted.pop("flip", 0) > 0,
            vertical_flip=wanted.pop("vflip", 0) > 0,
            rotate90=wanted.pop("rotate90", 0) > 0,
            **{names.get(name, name): value for name, value in wanted.items()},
        )
    except ValueError as error:
        raise Failure(f"--augment {text}: {error}", USAGE) from error


def network_of(options: Options, dataset: Dataset) -> nn.Graph:
    """The network that the settings ask for; Failure where it does not fit the data."""
    try:
        graph = models.build(
            options.model,
            classes=len(dataset.classes),
            channels=dataset.channels,
            image_size=dataset.image_size,
            stem=options.stem,
            dropout=options.dropout,
            width=options.width,
        )
    except ValueError as error:
        text = str(error).removeprefix("build: ").replace("image_size is", "--image-size is", 1)
        raise Failure(text, USAGE) from error
    graph = graph.fuse() if options.fuse else graph.unfuse()
    freeze(graph, options.freeze)
    return graph


def _optimizer(options: Options, model: nn.Graph, parameters: nn.Parameters, lr: float) -> nn.optim.Optimizer:
    optimizer = _make_optimizer(options, parameters, lr)
    factors = layer_rates(model, options.layer_lr)
    if factors:
        optimizer.scale_rates({name: factor for name, factor in factors.items() if name in parameters.slices})
    return optimizer


def _make_optimizer(options: Options, parameters: nn.Parameters, lr: float) -> nn.optim.Optimizer:
    if options.optimizer == "sgd":
        return nn.SGD(
            parameters,
            lr=lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
    kind = nn.Adam if options.optimizer == "adam" else nn.AdamW
    return kind(parameters, lr=lr, weight_decay=options.weight_decay)


def _class_weights(options: Options, dataset: Dataset) -> NDArray[np.float64] | None:
    """'balanced': inverse frequency in the training split, so that each class has the same total weight."""
    if options.class_weights == "none":
        return None
    counts = class_counts(dataset, "train").astype(np.float64)
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1.0))
    return np.asarray(np.where(counts > 0, weights, 0.0).astype(np.float32), np.float64)
