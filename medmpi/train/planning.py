"""Plans how to spread a network over ranks, and checks the plan by running it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medmpi import kernels as K
from medmpi import nn, parallel
from medmpi.parallel.plan import Prediction, busy, choose, predict, shapes
from medmpi.train.failure import USAGE, Failure
from medmpi.train.options import Options
from medmpi.train.split import make_pipeline
from medmpi.train.survey import Survey, random_batch, survey, usual

if TYPE_CHECKING:
    from medmpi.parallel import World


@dataclass(frozen=True)
class Run:
    """A step that was run: its seconds, and how fast the machine was meanwhile, relative to when it was surveyed."""

    seconds: float
    speed: float


def copies_of(options: Options) -> float:
    """Arrays of the size of the parameters that a rank holds: values, gradients, the optimizer's."""
    return 4 if options.optimizer.startswith("adam") else 3


def forecast(found: Survey, options: Options, batch: int, shape: tuple[int, int, int], **named: Any) -> Prediction:
    """The step with these settings on (replicas, stages, micro-batches)."""
    return predict(
        found.costs, batch, shape, named.pop("network", found.network), found.machine,
        whole_batch=options.sync_batchnorm, schedule=options.pipeline, copies=copies_of(options), **named,
    )  # fmt: skip


def run_plan(
    make: Callable[[], nn.Graph],
    image: tuple[int, int, int],
    batch: int,
    options: Options,
    plan: Prediction,
    world: World,
    found: Survey,
    steps: int,
) -> Run:
    """Real steps of that shape on the first ranks of ``world`` (the median of their times). Collective.

    Random images, SGD with momentum. A shared machine is now faster, now slower: passes of as many ranks as compute at
    a time are timed before and after, for the speed of that moment.
    """
    ranks = plan.replicas * plan.stages
    part = world.split(0 if world.rank < ranks else 1)
    trial = Trial(make(), image, batch, options, plan, part) if world.rank < ranks else None

    def run() -> float:
        took = [] if trial is None else [trial.step() for _ in range(steps)]
        slowest = [times for times in world.allgather(took) if times]
        return usual([max(column) for column in zip(*slowest, strict=True)])

    for _ in range(3):  # the first ones meet cold caches, and the arena's plan is made
        if trial is not None:
            trial.step()
    seconds, speed = found.pace.steady(run, busy(plan, found.costs, options.sync_batchnorm))
    if trial is not None:
        trial.close()
    part.close()
    return Run(seconds, speed)


class Trial:
    """Training steps of a shape, on its ranks."""

    def __init__(
        self, model: nn.Graph, image: tuple[int, int, int], batch: int, options: Options, plan: Prediction, world: World
    ) -> None:
        self._world, self._grid = world, parallel.Grid(world, stages=plan.stages)
        settings = replace(options, stages=plan.stages, micro_batches=plan.micro_batches)
        graph, self._pipeline = make_pipeline(settings, model, list(plan.cuts), image, self._grid, 1, None)
        data = self._grid.data
        self._parameters = nn.Parameters(graph, allocate=data.allocate)
        self._update = parallel.NodeUpdate(self._parameters, nn.SGD(self._parameters, lr=1e-6, momentum=0.9), data)
        self._buckets = parallel.GradientBuckets(self._parameters, data)
        joint = options.sync_batchnorm and (data.size > 1 or self._pipeline.micro_batches > 1)
        self._context = nn.Context(statistics=parallel.RankStatistics(data) if joint else None)
        first, stop = (batch * r // self._grid.replicas for r in (self._grid.replica, self._grid.replica + 1))
        self._x, self._labels = random_batch(model, image, stop - first)
        self._total = np.array([float(np.prod(model.output_shape((batch, *image))[:-1]))])
        self._criterion = nn.CrossEntropy()
        self._arena = K.Arena() if plan.stages == 1 else nullcontext()

    def _loss(self, rows: slice, logits: Any) -> Any:
        return self._criterion(logits, self._labels[rows], denominator=self._total)[1]

    def step(self) -> float:
        """Seconds of a step."""
        self._world.barrier("step")
        start = time.perf_counter()
        self._parameters.zero_grad()
        with self._arena:
            self._pipeline.step(self._x, len(self._x), self._context, self._loss, self._buckets.done)
        self._buckets.finish()
        nn.optim.gradient_norm(self._parameters)
        self._update.step()
        return time.perf_counter() - start

    def close(self) -> None:
        """Lets go of the parts' communicators."""
        for part in (self._grid.data, self._grid.pipe):
            if part is not None and part is not self._world:
                part.close()


def node_memory() -> float:
    """Bytes that this node can still give to its ranks."""
    import psutil

    return float(psutil.virtual_memory().available)


def planned(options: Options, model: nn.Graph, image: tuple[int, int, int], world: World) -> Options:
    """The settings with the shape that is predicted to be the fastest for these ranks and fits them. Collective.

    A machine shared with others measures differently every time: the choice is in the run folder's config.toml, and a
    resumed run takes it from there.
    """
    found = survey(model, image, options.batch_size, world, whole_batch=options.sync_batchnorm)
    every = [
        forecast(found, options, options.batch_size, shape)
        for shape in shapes(world.size, options.batch_size, len(model), options.sync_batchnorm)
    ]
    found.pace.close()
    best = world.broadcast(choose(every, node_memory() / world.local_size), operation="choose a plan")
    if best is None:
        raise Failure(
            f"--parallel auto: no shape of {world.size} ranks and batch {options.batch_size} fits the memory; take more"
            " ranks, a smaller --batch-size, or --tiles",
            USAGE,
        )
    cuts = ",".join(map(str, best.cuts)) or None
    return replace(
        options, parallel="manual", replicas=best.replicas, stages=best.stages, cuts=cuts,
        micro_batches=best.micro_batches,
    )  # fmt: skip


def table(predictions: Sequence[Prediction], runs: dict[int, Run], batch: int, memory: float) -> list[str]:
    """A line for each shape: predicted step, images per second, memory; beside it the run and the error.

    The error is that of the prediction at the machine's speed while it ran.
    """
    head = f"{'replicas x stages':>24} {'step ms':>9} {'images/s':>9} {'MiB/rank':>9}"
    lines = [head + (f"  {'run ms':>9} {'speed':>6} {'error':>7}" if runs else "")]
    for i, p in enumerate(predictions):
        line = f"{p.describe():>24} {p.seconds * 1e3:9.1f} {batch / p.seconds:9.1f} {p.memory / 2**20:9.0f}"
        if i in runs:
            run = runs[i]
            line += f"  {run.seconds * 1e3:9.1f} {run.speed:6.2f} {p.seconds / run.speed / run.seconds - 1:+7.1%}"
        lines.append(line + ("  does not fit" if p.memory > memory else ""))
    return lines


def accuracy(predictions: Sequence[Prediction], runs: Sequence[Run]) -> float:
    """1 - the mean relative error, as the oracle of Kahira et al. states it, at the machine's speed of each run."""
    errors = [abs(p.seconds / r.speed - r.seconds) / r.seconds for p, r in zip(predictions, runs, strict=True)]
    return 1 - sum(errors) / len(errors)


def accuracies(predictions: Sequence[Prediction], runs: Sequence[Run]) -> list[str]:
    """Lines that tell the accuracy over all shapes and of data parallelism alone."""
    lines = [
        f"accuracy of {len(runs)} predictions: {accuracy(predictions, runs):.2%} on average (1 - mean relative error)"
    ]
    pairs = [(p, r) for p, r in zip(predictions, runs, strict=True) if p.stages == 1 and p.replicas > 1]
    if pairs:
        lines.append(f"of data parallelism alone ({len(pairs)}): {accuracy(*zip(*pairs, strict=True)):.2%}")
    return lines
