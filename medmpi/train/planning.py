"""Plans how to spread a network over ranks, and checks the plan by running it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medmpi import nn
from medmpi.parallel.plan import Prediction, choose, predict, shapes
from medmpi.train.failure import USAGE, Failure
from medmpi.train.options import Options
from medmpi.train.survey import REPEATS, SHORT, UNDISTURBED, Survey, survey, undisturbed
from medmpi.train.trial import Trial

if TYPE_CHECKING:
    from medmpi.parallel import World


def copies_of(options: Options) -> float:
    """Arrays of the size of the parameters that a rank holds: values, gradients, the optimizer's."""
    return 4 if options.optimizer.startswith("adam") else 3


def forecast(found: Survey, options: Options, batch: int, shape: tuple[int, int, int], **named: Any) -> Prediction:
    """The step with these settings on (replicas, stages, micro-batches)."""
    return predict(
        found.costs, batch, shape, named.pop("network", found.network), found.machine,
        whole_batch=options.sync_batchnorm, schedule=options.pipeline, copies=copies_of(options), **named,
    )  # fmt: skip


def verify(
    make: Callable[[], nn.Graph],
    image: tuple[int, int, int],
    batch: int,
    options: Options,
    plans: Sequence[Prediction],
    world: World,
    found: Survey,
    turns: int,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Prediction], list[float]]:
    """Predictions, and seconds of real steps of those shapes and cuts. Collective.

    The survey's measurements and the steps of all shapes take turns, so that a machine that is now faster, now slower
    is the same to both; of both the lower quartile counts. Predictions are made of the survey's measurements alone.
    Random images, SGD with momentum. Shapes are run together as far as their memory allows.
    """
    predicted, ran = [], []
    for group in _groups(plans, node_memory() / world.local_size / 2):
        trials = [Trial(make(), image, batch, options, plan, world) for plan in group]
        times: list[list[float]] = [[] for _ in group]
        for trial in trials:
            for _ in range(2):  # the arena's plan is made
                trial.step()
        found.clear()
        start = time.perf_counter()
        for turn in range(turns):
            found.turn()
            for plan, trial, took in zip(group, trials, times, strict=True):
                for _ in range(REPEATS if plan.replicas > 1 else 1):
                    seconds = trial.step()
                    took.append(trial.step() if seconds < SHORT else seconds)
            left = (time.perf_counter() - start) / (turn + 1) * (turns - turn - 1)
            say(f"turn {turn + 1} of {turns}, {left:.0f} s left")
        predicted += [
            forecast(found, options, batch, (p.replicas, p.stages, p.micro_batches), cuts=p.cuts or None) for p in group
        ]
        ran += [undisturbed(took) for took in times]
        for trial in trials:
            trial.close()
    return predicted, ran


def _groups(plans: Sequence[Prediction], memory: float) -> list[list[Prediction]]:
    """The plans in their order, as many at a time as fit the memory, one at least."""
    groups: list[list[Prediction]] = []
    free = -1.0
    for plan in plans:
        if not groups or plan.memory > free:
            groups.append([])
            free = memory
        groups[-1].append(plan)
        free -= plan.memory
    return groups


def node_memory() -> float:
    """Bytes that this node can still give to its ranks."""
    import psutil

    return float(psutil.virtual_memory().available)


def planned(options: Options, model: nn.Graph, image: tuple[int, int, int], world: World) -> Options:
    """The settings with the shape that is predicted to be the fastest for these ranks and fits them. Collective.

    A machine shared with others measures differently every time: the choice is in the run folder's config.toml, and a
    resumed run takes it from there.
    """
    found = survey(model, image, options.batch_size, world, options)
    every = [
        forecast(found, options, options.batch_size, shape)
        for shape in shapes(world.size, options.batch_size, len(model), options.sync_batchnorm)
    ]
    found.close()
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


def table(
    predictions: Sequence[Prediction], runs: Sequence[float], batch: int, memory: float = float("inf")
) -> list[str]:
    """A line for each shape: predicted step, images per second, memory; beside it the run, if any, and the error."""
    head = f"{'replicas x stages':>24} {'step ms':>9} {'images/s':>9} {'MiB/rank':>9}"
    lines = [head + (f"  {'run ms':>9} {'error':>7}" if runs else "")]
    for i, p in enumerate(predictions):
        line = f"{p.describe():>24} {p.seconds * 1e3:9.1f} {batch / p.seconds:9.1f} {p.memory / 2**20:9.0f}"
        if runs:
            line += f"  {runs[i] * 1e3:9.1f} {p.seconds / runs[i] - 1:+7.1%}"
        lines.append(line + ("  does not fit" if p.memory > memory else ""))
    return lines


def accuracy(predictions: Sequence[Prediction], runs: Sequence[float]) -> float:
    """1 - the mean relative error, as the oracle of Kahira et al. states it."""
    return 1 - sum(abs(p.seconds - r) / r for p, r in zip(predictions, runs, strict=True)) / len(runs)


def accuracies(predictions: Sequence[Prediction], runs: Sequence[float], turns: int) -> list[str]:
    """Lines that tell the accuracy over all shapes and of data parallelism alone."""
    lines = [
        f"accuracy of {len(runs)} predictions: {accuracy(predictions, runs):.2%} on average (1 - mean relative error;"
        f" {UNDISTURBED} of {turns} samples of each measurement and run in turns, {REPEATS * turns} with several ranks)"
    ]
    pairs = [(p, r) for p, r in zip(predictions, runs, strict=True) if p.stages == 1 and p.replicas > 1]
    if pairs:
        lines.append(f"of data parallelism alone ({len(pairs)}): {accuracy(*zip(*pairs, strict=True)):.2%}")
    return lines
