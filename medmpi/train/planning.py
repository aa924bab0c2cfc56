"""Measures a network on this machine, and plans and checks how to spread it over ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medmpi import kernels as K
from medmpi import nn, parallel
from medmpi.nn.measure import measure
from medmpi.parallel.plan import LayerCost, Machine, Network, Prediction, choose, predict, shapes
from medmpi.parallel.probe import probe
from medmpi.train.failure import USAGE, Failure
from medmpi.train.options import Options
from medmpi.train.split import make_pipeline

if TYPE_CHECKING:
    from medmpi.parallel import World

_IMAGES = (2, 16)  # batches that are measured: the difference is what an image costs
_VALUES = 1 << 27  # bytes of the largest value that is measured


def _usual(times: Sequence[float]) -> float:
    """The lower quartile: what it takes when nobody else wants the machine, without trusting one lucky run."""
    return float(np.quantile(list(times), 0.25))


@dataclass(frozen=True)
class Survey:
    """What was measured: layers, network, machine; ``images`` of a step that took ``reference`` seconds on rank 0."""

    costs: list[LayerCost]
    network: Network
    machine: Machine
    images: int
    reference: float


@dataclass(frozen=True)
class Run:
    """A step that was run: its seconds, and how fast the machine was meanwhile, relative to when it was surveyed."""

    seconds: float
    speed: float


def survey(model: nn.Graph, image: tuple[int, int, int], batch: int, world: World) -> Survey:
    """Measures the layers of ``model`` alone and on all ranks at once, a whole step, and the network. Collective."""
    sizes = model.shapes((1, *image))
    largest = max(4 * int(np.prod(size)) for size in sizes)
    high = max(1, min(_IMAGES[1], batch, _VALUES // largest))
    low = max(1, min(_IMAGES[0], high // 2))
    costs: list[LayerCost] = []
    overhead = update = 0.0
    if world.rank == 0:
        costs, overhead, update = _alone(model, image, low, high)
    costs, overhead, update = world.broadcast((costs, overhead, update), operation="measure layers")
    crowding = _crowding(model, image, high, world)
    now = reference(model, image, high, world)
    return Survey(costs, probe(world), Machine(crowding, overhead, update), high, now)


def reference(model: nn.Graph, image: tuple[int, int, int], n: int, world: World) -> float:
    """Seconds of a forward and backward pass of ``n`` images on rank 0 now, while the other ranks wait. Collective."""
    seconds = 0.0
    if world.rank == 0:
        nn.Parameters(model)
        x, labels = _random_batch(model, image, n)
        took = []
        for _ in range(6):
            start = time.perf_counter()
            (logits,), saved = model.forward(x, context=nn.Context())
            _, dlogits = nn.CrossEntropy()(logits, labels)
            model.backward((dlogits,), saved)
            took.append(time.perf_counter() - start)
        seconds = _usual(took[1:])
    return world.broadcast(seconds, operation="time a reference step")


def _alone(model: nn.Graph, image: tuple[int, int, int], low: int, high: int) -> tuple[list[LayerCost], float, float]:
    """Layers, seconds of a step beside them, and seconds per byte of the optimizer, on an otherwise idle machine."""
    sizes = model.shapes((1, *image))
    small = measure(model, (low, *image)) if low < high else None
    large = measure(model, (high, *image))
    factor, overhead, update = _whole(model, image, high, sum(c.seconds for c in large))
    costs = []
    for i, cost in enumerate(large):
        (forward, forward_each), (backward, backward_each) = (
            _line(getattr(small[i], name) if small else None, getattr(cost, name), low, high)
            for name in ("forward", "backward")
        )
        costs.append(
            LayerCost(
                cost.name,
                forward * factor,
                forward_each * factor,
                backward * factor,
                backward_each * factor,
                cost.parameter_bytes,
                (cost.output_bytes + cost.saved_bytes) // high,
                4 * sum(int(np.prod(sizes[v])) for v in model.live(i)),
                isinstance(model.nodes[i].layer, nn.BatchNorm2d) and not model.nodes[i].layer.frozen,
            )
        )
    return costs, overhead, update


def _line(first: float | None, second: float, low: int, high: int) -> tuple[float, float]:
    """Seconds of a pass and of an image from the times of two batches; neither below 0."""
    if first is None:
        return 0.0, second / high
    each = min(max((second - first) / (high - low), 0.0), second / high)
    return second - each * high, each


def _whole(model: nn.Graph, image: tuple[int, int, int], n: int, layers: float) -> tuple[float, float, float]:
    """How much slower layers are within a step than alone, what else a step takes, and the optimizer per byte."""
    parameters = nn.Parameters(model)
    optimizer = nn.SGD(parameters, lr=1e-6, momentum=0.9)
    x, labels = _random_batch(model, image, n)
    arena = K.Arena()
    passes, others, updates = [], [], []
    for _ in range(8):
        start = time.perf_counter()
        parameters.zero_grad()
        began = time.perf_counter()
        with arena:
            (logits,), saved = model.forward(x, context=nn.Context())
            middle = time.perf_counter()
            _, dlogits = nn.CrossEntropy()(logits, labels)
            after = time.perf_counter()
            model.backward((dlogits,), saved)
            del logits, saved, dlogits
        end = time.perf_counter()
        nn.optim.gradient_norm(parameters)
        optimizer.step()
        done = time.perf_counter()
        passes.append(end - began - (after - middle))
        others.append(after - middle)
        updates.append(done - end + began - start)
    factor = _usual(passes[2:]) / layers if layers else 1.0
    return factor, _usual(others[2:]), _usual(updates[2:]) / max(parameters.value.nbytes, 1)


def _crowding(model: nn.Graph, image: tuple[int, int, int], n: int, world: World) -> tuple[float, ...]:
    """How much slower a rank of this node computes when 1, 2, ... of them do."""
    parameters = nn.Parameters(model)
    x, labels = _random_batch(model, image, n)
    arena, found = K.Arena(), []
    counts = sorted({1, *(2**k for k in range(1, 12) if 2**k < world.local_size), world.local_size})
    for busy in counts:
        took = []
        for _ in range(6):
            world.barrier("measure crowding")
            start = time.perf_counter()
            if world.local_rank < busy:
                with arena:
                    (logits,), saved = model.forward(x, context=nn.Context())
                    _, dlogits = nn.CrossEntropy()(logits, labels)
                    model.backward((dlogits,), saved)
                    del logits, saved, dlogits
            took.append(time.perf_counter() - start)
        slowest = max(_usual(t) for t in world.allgather(took[1:]))
        found.append(slowest)
    parameters.zero_grad()
    factors = [max(1.0, seconds / found[0]) for seconds in found]
    return tuple(float(np.interp(k, counts, factors)) for k in range(1, world.local_size + 1))


def _random_batch(model: nn.Graph, image: tuple[int, int, int], n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    shape = model.output_shape((n, *image))
    return rng.standard_normal((n, *image), np.float32), rng.integers(0, shape[-1], shape[:-1])


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
    """Real steps of that shape on the first ranks of ``world`` (the lower quartile of their times). Collective.

    Random images, SGD with momentum. A shared machine is now faster, now slower: a step on one rank is timed before and
    after, for the speed of that moment.
    """
    ranks = plan.replicas * plan.stages
    before = reference(make(), image, found.images, world)
    part = world.split(0 if world.rank < ranks else 1)
    took: list[float] = []
    if world.rank < ranks:
        took = _steps(make(), image, batch, options, plan, part, steps)
    part.close()
    slowest = [t for t in world.allgather(took) if t]
    after = reference(make(), image, found.images, world)
    seconds = _usual([max(column) for column in zip(*slowest, strict=True)])
    return Run(seconds, 2 * found.reference / (before + after))


def _steps(
    model: nn.Graph,
    image: tuple[int, int, int],
    batch: int,
    options: Options,
    plan: Prediction,
    world: World,
    steps: int,
) -> list[float]:
    grid = parallel.Grid(world, stages=plan.stages)
    settings = replace(options, stages=plan.stages, micro_batches=plan.micro_batches)
    graph, pipeline = make_pipeline(settings, model, list(plan.cuts), image, grid, 1, None)
    parameters = nn.Parameters(graph, allocate=grid.data.allocate)
    optimizer = nn.SGD(parameters, lr=1e-6, momentum=0.9)
    update = parallel.NodeUpdate(parameters, optimizer, grid.data)
    buckets = parallel.GradientBuckets(parameters, grid.data)
    joint = options.sync_batchnorm and (grid.data.size > 1 or pipeline.micro_batches > 1)
    context = nn.Context(statistics=parallel.RankStatistics(grid.data) if joint else None)
    first, stop = (batch * r // grid.replicas for r in (grid.replica, grid.replica + 1))
    x, labels = _random_batch(model, image, stop - first)
    criterion, total = nn.CrossEntropy(), float(np.prod(model.output_shape((batch, *image))[:-1]))

    def loss(rows: slice, logits: Any) -> Any:
        return criterion(logits, labels[rows], denominator=total)[1]

    arena = K.Arena()
    took = []
    for turn in range(steps + 3):
        world.barrier("step")
        start = time.perf_counter()
        parameters.zero_grad()
        if plan.stages == 1:
            with arena:
                pipeline.step(x, len(x), context, loss, buckets.done)
        else:
            pipeline.step(x, len(x), context, loss, buckets.done)
        buckets.finish()
        world.sum(np.array([nn.optim.gradient_norm(parameters)]))
        update.step()
        if turn >= 3:  # the first ones meet cold caches, and the arena's plan is made
            took.append(time.perf_counter() - start)
    for part in (grid.data, grid.pipe):
        if part is not None and part is not world:
            part.close()
    return took


def node_memory() -> float:
    """Bytes that this node can still give to its ranks."""
    import psutil

    return float(psutil.virtual_memory().available)


def planned(options: Options, model: nn.Graph, image: tuple[int, int, int], world: World) -> Options:
    """The settings with the shape that is predicted to be the fastest for these ranks and fits them. Collective.

    A machine shared with others measures differently every time: the choice is in the run folder's config.toml, and a
    resumed run takes it from there.
    """
    found = survey(model, image, options.batch_size, world)
    every = [
        forecast(found, options, options.batch_size, shape)
        for shape in shapes(world.size, options.batch_size, len(model), options.sync_batchnorm)
    ]
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


def accuracy(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """1 - the mean relative error, as the oracle of Kahira et al. states it."""
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    return 1 - sum(errors) / len(errors)
