"""Training steps on random images, as a run would make them, for timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medmpi import kernels as K
from medmpi import nn, parallel
from medmpi.parallel.plan import Prediction
from medmpi.train.options import Options
from medmpi.train.split import make_pipeline

if TYPE_CHECKING:
    from medmpi.parallel import World


class Passes:
    """Forward and backward of a replica's ``n`` images, with the loss, on this rank's stage of ``grid``.

    ``planned`` memory is what a network that is not split has. ``total`` is what the loss is divided by, by default the
    number of predictions for ``n`` images.
    """

    def __init__(
        self,
        model: nn.Graph,
        image: tuple[int, int, int],
        n: int,
        options: Options,
        grid: parallel.Grid,
        *,
        cuts: Sequence[int] = (),
        statistics: parallel.RankStatistics | None = None,
        planned: bool = True,
        total: float | None = None,
    ) -> None:
        self.graph, self._pipeline = make_pipeline(options, model, list(cuts), image, grid, 1, None)
        self._context = nn.Context(statistics=statistics)
        rng = np.random.default_rng(0)
        shape = model.output_shape((n, *image))
        self._x = rng.standard_normal((n, *image), np.float32)
        self._labels = rng.integers(0, shape[-1], shape[:-1])
        self._total = np.array([float(np.prod(shape[:-1])) if total is None else total])
        self._criterion = nn.CrossEntropy()
        self._arena = K.Arena() if planned else nullcontext()

    def _loss(self, rows: slice, logits: Any) -> Any:
        return self._criterion(logits, self._labels[rows], denominator=self._total)[1]

    def __call__(self, done: Callable[[Any], None] = lambda node: None) -> None:
        with self._arena:
            self._pipeline.step(self._x, len(self._x), self._context, self._loss, done)


class Upkeep:
    """What a step does with the parameters beside the passes: zeroing, the gradient's norm, the update.

    SGD with momentum, of ``world``'s ranks together.
    """

    def __init__(self, parameters: nn.Parameters, world: World) -> None:
        self._parameters = parameters
        self._update = parallel.NodeUpdate(parameters, nn.SGD(parameters, lr=1e-6, momentum=0.9), world)

    def begin(self) -> None:
        """Before the passes."""
        self._parameters.zero_grad()

    def end(self) -> None:
        """After the sums of gradients."""
        nn.optim.gradient_norm(self._parameters)
        self._update.step()


class Trial:
    """Training steps of a shape on the first ranks of ``world``. All methods are collective over all of its ranks."""

    def __init__(
        self, model: nn.Graph, image: tuple[int, int, int], batch: int, options: Options, plan: Prediction, world: World
    ) -> None:
        ranks = plan.replicas * plan.stages
        self._part = world.split(0 if world.rank < ranks else 1)
        self._world, self._active = world, world.rank < ranks
        self.waited = 0.0  # seconds of the last step in which this rank waited for others
        if not self._active:
            return
        self._grid = grid = parallel.Grid(self._part, stages=plan.stages)
        settings = replace(options, stages=plan.stages, micro_batches=plan.micro_batches, device="cpu")
        joint = options.sync_batchnorm and (grid.data.size > 1 or plan.micro_batches > 1)
        first, stop = (batch * r // grid.replicas for r in (grid.replica, grid.replica + 1))
        self._passes = Passes(
            model, image, stop - first, settings, grid, cuts=plan.cuts,
            statistics=parallel.RankStatistics(grid.data) if joint else None, planned=plan.stages == 1,
            total=float(np.prod(model.output_shape((batch, *image))[:-1])),
        )  # fmt: skip
        parameters = nn.Parameters(self._passes.graph, allocate=grid.data.allocate)
        self._upkeep = Upkeep(parameters, grid.data)
        self._buckets = parallel.GradientBuckets(parameters, grid.data)

    def step(self) -> float:
        """Seconds of a step on the slowest rank."""
        seconds = 0.0
        self._world.barrier("step")
        if self._active:
            start, waited = time.perf_counter(), self._waits()
            self._upkeep.begin()
            self._passes(self._buckets.done)
            self._buckets.finish()
            self._upkeep.end()
            seconds = time.perf_counter() - start
            self.waited = self._waits() - waited
        return max(self._world.allgather(seconds))

    def _waits(self) -> float:
        return self._part.seconds["wait"]  # parts of the grid count there

    def close(self) -> None:
        """Lets go of the parts' communicators."""
        if self._active:
            for part in (self._grid.data, self._grid.pipe):
                if part is not None and part is not self._part:
                    part.close()
        self._part.close()
