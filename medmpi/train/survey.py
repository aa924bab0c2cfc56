"""What a network costs on this machine and its ranks, measured while the machine is now faster, now slower."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from medmpi import nn, parallel
from medmpi.nn.measure import NodeCost, measure
from medmpi.parallel.plan import LayerCost, Machine, Network
from medmpi.parallel.probe import probe
from medmpi.train.options import Options
from medmpi.train.trial import Passes, Upkeep

if TYPE_CHECKING:
    from medmpi.parallel import World

_VALUES = 1 << 27  # bytes of the largest value that is measured
_PIECES = (1, 2, 4)  # micro-batches whose cost is measured
_CROWDED = ("crowd", "summed", "joint")
REPEATS = 3  # in a turn of what several ranks do together: it takes all of them to be undisturbed
SHORT = 0.05  # seconds: work that what it finds in the caches matters to
UNDISTURBED = "lower quartile"


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: other programs and other guests of a machine only ever add time, and not to every sample."""
    return float(np.quantile(list(times), 0.25))


class _Crowd:
    """The first ``busy`` ranks of every node at work at once on ``n`` images each, and their updates and sums."""

    def __init__(
        self, model: nn.Graph, image: tuple[int, int, int], n: int, options: Options, world: World, busy: int
    ) -> None:
        self.busy, self.n, self._inside = busy, n, world.local_rank < busy
        self._part = world.split(world.node if self._inside else world.nodes)
        self._alone = self._part.split(self._part.rank)
        self.joint = options.sync_batchnorm and busy > 1 and bool(_normalisations(model))
        grid = parallel.Grid(self._alone)
        statistics = parallel.RankStatistics(self._part) if self.joint else None
        self._passes = {
            joint: Passes(model, image, n, options, grid, statistics=statistics if joint else None)
            for joint in ((False, True) if self.joint else (False,))
        }
        self._parameters = nn.Parameters(model, allocate=self._part.allocate)
        self._upkeep = Upkeep(self._parameters, self._part)
        self._buckets = parallel.GradientBuckets(self._parameters, self._part)
        self._backward = [node for node in reversed(model.nodes) if node.name in self._parameters.slices]

    def compute(self, *, joint: bool = False, sums: bool = False) -> None:
        """A pass, of each on its own, with statistics of all, or with sums of gradients over all."""
        if not self._inside:
            return
        if sums:
            self._passes[joint](self._buckets.done)
            self._buckets.finish()
        else:
            self._passes[joint]()

    def update(self) -> None:
        """What a step does with the parameters."""
        if self._inside:
            self._upkeep.begin()
            self._upkeep.end()

    def gradients(self, *, sums: bool) -> None:
        """Changes all gradients in the order of a backward pass, and adds up the ranks' as a step does."""
        for node in self._backward if self._inside else []:
            self._parameters.grad[self._parameters.slices[node.name]] *= 0.5
            if sums:
                self._buckets.done(node)
        if sums and self._inside:
            self._buckets.finish()

    def close(self) -> None:
        self._alone.close()
        self._part.close()


class Survey:
    """What was measured: layers, network, machine. All methods are collective.

    Every ``turn`` times each kind of work once: whole passes of one rank at several batch sizes, passes of several
    ranks at once on their shares of ``batch``, without and with common statistics or sums of gradients, passes in
    micro-batches, updates and sums. What work of each kind takes is the lower quartile over the turns, so that all
    kinds met the same machine.
    """

    def __init__(
        self, model: nn.Graph, image: tuple[int, int, int], batch: int, world: World, options: Options
    ) -> None:
        self._world, self._model, self._image = world, model, image
        options = replace(options, stages=1, micro_batches=1, device="cpu")
        most = max(1, min(batch, _VALUES // max(4 * prod(shape) for shape in model.shapes((1, *image)))))
        doubled = {2**k for k in range(12) if 2**k < world.local_size}
        self._counts = sorted({1, *doubled, world.local_size})
        self._crowds = [
            _Crowd(model, image, min(most, -(-batch // busy)), options, world, busy) for busy in self._counts
        ]
        self._alone = world.split(world.rank)
        grid = parallel.Grid(self._alone)
        self._pieces = [m for m in _PIECES if m <= most] if world.size > 1 else []
        pieces = {most // m for m in _PIECES if m <= most}
        self.sizes = sorted({max(1, most // 16), *(crowd.n for crowd in self._crowds), *pieces})
        self._parameters = sum(prod(s.shape) for node in model.nodes for s in node.layer.parameter_specs().values()) * 4
        self._layers = world.broadcast(
            [measure(model, (n, *image)) for n in self.sizes] if world.rank == 0 else [], operation="measure layers"
        )
        self._link = probe(world)
        self._kinds: dict[tuple[str, int], Callable[[], object]] = {}
        for n in self.sizes:
            self._kinds["whole", n] = self._first(Passes(model, image, n, options, grid))
        for crowd in self._crowds:
            if crowd.busy > 1:
                self._kinds["crowd", crowd.busy] = crowd.compute
                self._kinds["summed", crowd.busy] = partial(crowd.compute, sums=True)
            if crowd.joint:
                self._kinds["joint", crowd.busy] = partial(crowd.compute, joint=True)
            self._kinds["update", crowd.busy] = crowd.update
            if crowd.busy > 1:
                self._kinds["write", crowd.busy] = partial(crowd.gradients, sums=False)
                self._kinds["sum", crowd.busy] = partial(crowd.gradients, sums=True)
        for m in self._pieces:
            joined = parallel.RankStatistics(self._alone) if options.sync_batchnorm and m > 1 else None
            settings = replace(options, micro_batches=m)
            work = Passes(model, image, most, settings, grid, statistics=joined, planned=False)
            self._kinds["pieces", m] = self._first(work)
        self.clear()
        self._sample(keep=False)

    def _first(self, work: Callable[[], object]) -> Callable[[], object]:
        """The work on rank 0 alone."""
        return work if self._world.rank == 0 else lambda: None

    def clear(self) -> None:
        """Forgets the turns so far."""
        self._times: dict[tuple[str, int], list[float]] = {kind: [] for kind in self._kinds}

    def turn(self) -> None:
        """Times each kind of work once."""
        self._sample(keep=True)

    def _sample(self, *, keep: bool) -> None:
        for kind, work in self._kinds.items():
            crowded = kind[0] in _CROWDED
            for _ in range(REPEATS if crowded and keep else 1):
                if crowded:  # as in a step, gradients were zeroed just now, and weights updated
                    self._crowds[-1].update()
                took = self._once(work)
                if not keep or took < SHORT:  # the arena's plan is made; caches hold other work's values
                    took = self._once(work)
                if keep:
                    self._times[kind].append(took)

    def _once(self, work: Callable[[], object]) -> float:
        self._world.barrier("measure")
        start = time.perf_counter()
        work()
        return max(self._world.allgather(time.perf_counter() - start))

    def seconds(self, kind: str, count: int) -> float:
        """What work of one kind takes."""
        return undisturbed(self._times[kind, count])

    @property
    def turns(self) -> int:
        """How often each kind was timed."""
        return len(self._times["whole", self.sizes[0]])

    @property
    def costs(self) -> list[LayerCost]:
        """The layers: measured alone they give the proportions, whole passes, the loss included, give the seconds."""
        factors = [
            self.seconds("whole", n) / sum(c.seconds for c in costs)
            for n, costs in zip(self.sizes, self._layers, strict=True)
        ]
        return [self._cost(i, factors) for i in range(len(self._model))]

    def _cost(self, i: int, factors: Sequence[float]) -> LayerCost:
        node, every = self._model.nodes[i], [costs[i] for costs in self._layers]
        last: NodeCost = every[-1]
        shapes = self._model.shapes((1, *self._image))
        return LayerCost(
            node.name,
            tuple(map(float, self.sizes)),
            tuple(c.forward * factor for c, factor in zip(every, factors, strict=True)),
            tuple(c.backward * factor for c, factor in zip(every, factors, strict=True)),
            last.parameter_bytes,
            (last.output_bytes + last.saved_bytes) // self.sizes[-1],
            4 * sum(prod(shapes[v]) for v in self._model.live(i)),
            isinstance(node.layer, nn.BatchNorm2d) and not node.layer.frozen,
        )

    @property
    def network(self) -> Network:
        """Messages, meetings and sums."""
        busy = self._counts[-1]
        if busy == 1:
            return self._link
        # bucket by bucket within passes, which they take memory's speed from; alone they take half of that at least
        alone = max(self.seconds("sum", busy) - self.seconds("write", busy), 1e-9)
        within = self.seconds("summed", busy) - self.seconds("crowd", busy)
        summed = max(min(max(within, alone), 2 * alone) - self._link.meeting, 1e-9)
        return replace(self._link, sum_bandwidth=self._parameters / summed)

    @property
    def machine(self) -> Machine:
        """The node's ranks."""
        slow, meeting = [], []
        for crowd in self._crowds:
            alone = self.seconds("whole", crowd.n)
            took = self.seconds("crowd", crowd.busy) if crowd.busy > 1 else alone
            slow.append(max(1.0, took / alone))
            joined = self.seconds("joint", crowd.busy) if crowd.joint else took
            meeting.append(max(joined - took, 0.0) / max(2 * _normalisations(self._model), 1))
        update = [self.seconds("update", busy) / max(self._parameters, 1) for busy in self._counts]
        every = range(1, self._world.local_size + 1)

        def filled(values: list[float]) -> tuple[float, ...]:
            return tuple(float(np.interp(k, self._counts, values)) for k in every)

        return Machine(filled(slow), filled(update), self._staged(), filled(meeting))

    def _staged(self) -> tuple[float, ...]:
        """How many times longer micro-batches in memory that is not planned take than planned passes as large."""
        most = self.sizes[-1]
        alone = [self.seconds("whole", n) for n in self.sizes]
        return tuple(
            self.seconds("pieces", m) / (m * float(np.interp(most / m, self.sizes, alone))) for m in self._pieces
        ) or (1.0,)

    def close(self) -> None:
        """Lets go of the ranks' communicators."""
        for crowd in self._crowds:
            crowd.close()
        self._alone.close()


def _normalisations(model: nn.Graph) -> int:
    return sum(isinstance(node.layer, nn.BatchNorm2d) and not node.layer.frozen for node in model.nodes)


def survey(
    model: nn.Graph, image: tuple[int, int, int], batch: int, world: World, options: Options, *, turns: int = 5
) -> Survey:
    """Measures ``model`` with so many turns. Collective; close it."""
    found = Survey(model, image, batch, world, options)
    for _ in range(turns):
        found.turn()
    return found
