"""What a network costs on this machine and its ranks, measured while the machine is now faster, now slower."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medmpi import kernels as K
from medmpi import nn, parallel
from medmpi.nn.measure import measure
from medmpi.parallel.plan import LayerCost, Machine, Network
from medmpi.parallel.probe import probe

if TYPE_CHECKING:
    from medmpi.parallel import World

T = TypeVar("T")
_REFERENCE = 16  # images of the pass that tells how fast the machine is
_VALUES = 1 << 27  # bytes of the largest value that is measured
_ROUNDS = 7
_STEADY, _TRIES = 0.08, 4  # a measurement is made again while the machine's speed changes by more


def usual(times: Sequence[float]) -> float:
    """The median."""
    return float(np.median(list(times)))


def random_batch(model: nn.Graph, image: tuple[int, int, int], n: int) -> tuple[Any, Any]:
    """Images and labels of what the network's output is for."""
    rng = np.random.default_rng(0)
    shape = model.output_shape((n, *image))
    return rng.standard_normal((n, *image), np.float32), rng.integers(0, shape[-1], shape[:-1])


class Pass:
    """Forward and backward of ``n`` images on one rank."""

    def __init__(self, model: nn.Graph, image: tuple[int, int, int], n: int, *, planned: bool = True) -> None:
        self._model, self._arena = model, K.Arena() if planned else contextlib.nullcontext()
        self._x, self._labels = random_batch(model, image, n)

    def __call__(self, context: nn.Context) -> tuple[float, float]:
        """Seconds of the network, and of the loss."""
        start = time.perf_counter()
        with self._arena:
            (logits,), saved = self._model.forward(self._x, context=context)
            middle = time.perf_counter()
            _, dlogits = nn.CrossEntropy()(logits, self._labels)
            after = time.perf_counter()
            self._model.backward((dlogits,), saved)
            del logits, saved, dlogits
        return time.perf_counter() - start - (after - middle), after - middle


class _Crowd:
    """The first ``busy`` ranks of every node at work at once, and their step without the passes."""

    def __init__(self, model: nn.Graph, world: World, busy: int, whole_batch: bool) -> None:
        self.busy, self._inside = busy, world.local_rank < busy
        self._part = world.split(world.node if self._inside else world.nodes)
        joint = whole_batch and busy > 1 and any(isinstance(node.layer, nn.BatchNorm2d) for node in model.nodes)
        self._statistics = parallel.RankStatistics(self._part) if joint else None
        self._parameters = nn.Parameters(model, allocate=self._part.allocate if self._inside else None)
        optimizer = nn.SGD(self._parameters, lr=1e-6, momentum=0.9)
        self._update = parallel.NodeUpdate(self._parameters, optimizer, self._part, active=self._inside)

    def compute(self, work: Pass, *, joint: bool = False) -> float:
        """Seconds of a pass, of each on its own or with statistics of all; 0 on a rank that only watches."""
        context = nn.Context(statistics=self._statistics if joint else None)
        return sum(work(context)) if self._inside else 0.0

    def update(self) -> float:
        """Seconds of what a step does with the parameters."""
        if not self._inside:
            return 0.0
        start = time.perf_counter()
        self._parameters.zero_grad()
        nn.optim.gradient_norm(self._parameters)
        self._update.step()
        return time.perf_counter() - start

    def close(self) -> None:
        self._part.close()


class Pace:
    """How fast a node's ranks are now, relative to when this object was made. All methods are collective.

    Told by passes of a few images; what stages cost besides is measured with ``most`` images.
    """

    def __init__(
        self, model: nn.Graph, image: tuple[int, int, int], most: int, world: World, whole_batch: bool
    ) -> None:
        self._world, self._pass = world, Pass(model, image, min(_REFERENCE, most))
        doubled = {2**k for k in range(12) if 2**k < world.local_size}
        self.counts = sorted({1, *doubled, world.local_size})
        self._crowds = {busy: _Crowd(model, world, busy, whole_batch) for busy in self.counts}
        self._standard = dict.fromkeys(self.counts, 1.0)
        times: dict[int, list[float]] = {busy: [] for busy in self.counts}
        joint: dict[int, list[float]] = {busy: [] for busy in self.counts}
        updates: dict[int, list[float]] = {busy: [] for busy in self.counts}
        self._staged = self._of_stages(model, image, most, whole_batch)
        for turn in range(_ROUNDS + 1):  # in turns: they are compared with each other
            for busy, crowd in self._crowds.items():
                times[busy] += self._slowest(lambda crowd=crowd: crowd.compute(self._pass))[: turn > 0]  # type: ignore[misc]
                joint[busy] += self._slowest(lambda crowd=crowd: crowd.compute(self._pass, joint=True))[: turn > 0]  # type: ignore[misc]
                updates[busy] += self._slowest(crowd.update)[: turn > 0]
        self._standard = {busy: usual(t) for busy, t in times.items()}
        self._joint = {busy: max(usual(t) - self._standard[busy], 0.0) for busy, t in joint.items()}
        self._updates = {busy: usual(t) for busy, t in updates.items()}
        self._meetings = 2 * sum(isinstance(node.layer, nn.BatchNorm2d) for node in model.nodes)

    def _of_stages(
        self, model: nn.Graph, image: tuple[int, int, int], n: int, whole_batch: bool
    ) -> tuple[float, float]:
        """How many times slower passes are where memory is not planned, and where statistics are joined besides."""
        world = self._world.split(self._world.rank)
        statistics = parallel.RankStatistics(world) if whole_batch else None
        loose = Pass(model, image, n, planned=False)
        kinds = [(Pass(model, image, n), None), (loose, None), (loose, statistics)]
        times: list[list[float]] = [[] for _ in kinds]
        for _ in range(_ROUNDS if self._world.rank == 0 else 0):
            for kind, (work, joined) in zip(times, kinds, strict=True):
                kind.append(sum(work(nn.Context(statistics=joined))))
        world.close()
        plain, first, second = (usual(kind[1:]) for kind in times) if times[0] else (1.0, 1.0, 1.0)
        found = max(1.0, first / plain), max(1.0, second / plain)
        return self._world.broadcast(found, operation="measure stages")

    def _slowest(self, action: Callable[[], float]) -> list[float]:
        self._world.barrier("measure")
        return [max(self._world.allgather(action()))]

    def machine(self, overhead: float, parameter_bytes: int) -> Machine:
        """What was measured of the node's ranks."""
        every = range(1, self._world.local_size + 1)
        slow = [max(1.0, self._standard[busy] / self._standard[1]) for busy in self.counts]
        update = [self._updates[busy] / max(parameter_bytes, 1) for busy in self.counts]
        meeting = [self._joint[busy] / max(self._meetings, 1) for busy in self.counts]
        return Machine(
            tuple(float(np.interp(k, self.counts, slow)) for k in every),
            overhead,
            tuple(float(np.interp(k, self.counts, update)) for k in every),
            self._staged,
            tuple(float(np.interp(k, self.counts, meeting)) for k in every),
        )

    def now(self, busy: int) -> float:
        """Seconds of the reference pass now, on so many ranks at once."""
        crowd = self._crowds[busy]
        return usual([self._slowest(lambda: crowd.compute(self._pass))[0] for _ in range(4)][1:])

    def steady(self, action: Callable[[], T], busy: int = 1) -> tuple[T, float]:
        """What ``action`` returns, and the machine's speed meanwhile for ``busy`` ranks; 1 is that of the beginning.

        Where the speed changes on the way it is done again, and the steadiest time counts.
        """
        busy = next((count for count in self.counts if count >= busy), self.counts[-1])
        tried: list[tuple[float, T, float]] = []
        for _ in range(_TRIES):
            before = self.now(busy)
            result = action()
            after = self.now(busy)
            tried.append((abs(after - before) / before, result, 2 * self._standard[busy] / (before + after)))
            if tried[-1][0] < _STEADY:
                break
        _, result, speed = min(tried, key=lambda one: one[0])
        return result, speed

    def close(self) -> None:
        """Lets go of the ranks' communicators."""
        for crowd in self._crowds.values():
            crowd.close()


@dataclass(frozen=True)
class Survey:
    """What was measured: layers, network, machine; ``pace`` tells how fast the machine is at another time."""

    costs: list[LayerCost]
    network: Network
    machine: Machine
    pace: Pace


def survey(
    model: nn.Graph, image: tuple[int, int, int], batch: int, world: World, *, whole_batch: bool = True
) -> Survey:
    """Measures the layers of ``model``, whole passes alone and on all ranks at once, and the network. Collective."""
    sizes = _sizes(model, image, batch)
    parameter_bytes = 4 * sum(
        prod(spec.shape) for node in model.nodes for spec in node.layer.parameter_specs().values()
    )
    pace = Pace(model, image, sizes[-1], world, whole_batch)
    network = probe(world, parameter_bytes)
    tables, overhead = [], 0.0
    for n in sizes:

        def alone(n: int = n) -> tuple[list[nn.measure.NodeCost], float, float]:
            found = (measure(model, (n, *image)), *_whole(model, image, n)) if world.rank == 0 else ([], 0.0, 0.0)
            return world.broadcast(found, operation="measure layers")

        (costs, passes, overhead), speed = pace.steady(alone)
        # layers alone give the proportions, the whole pass, whose values come from further away, gives the seconds
        tables.append((costs, speed * passes / sum(c.seconds for c in costs)))
    machine = pace.machine(overhead, parameter_bytes)
    every = []
    for i, node in enumerate(model.nodes):
        last = tables[-1][0][i]
        every.append(
            LayerCost(
                node.name,
                tuple(map(float, sizes)),
                tuple(costs[i].forward * factor for costs, factor in tables),
                tuple(costs[i].backward * factor for costs, factor in tables),
                last.parameter_bytes,
                (last.output_bytes + last.saved_bytes) // sizes[-1],
                4 * sum(prod(shape) for shape in (model.shapes((1, *image))[v] for v in model.live(i))),
                isinstance(node.layer, nn.BatchNorm2d) and not node.layer.frozen,
            )
        )
    return Survey(every, network, machine, pace)


def _sizes(model: nn.Graph, image: tuple[int, int, int], batch: int) -> list[int]:
    """Batches to measure: the whole one and its quarters, as far as they fit."""
    largest = max(4 * prod(shape) for shape in model.shapes((1, *image)))
    most = max(1, min(batch, _VALUES // largest))
    return sorted({max(1, min(most, 2), most // 4**k) if most > 1 else 1 for k in range(4)})


def _whole(model: nn.Graph, image: tuple[int, int, int], n: int) -> tuple[float, float]:
    """Seconds of a pass through all layers, and of the loss."""
    work = Pass(model, image, n)
    took = [work(nn.Context()) for _ in range(_ROUNDS)][2:]
    return usual([t for t, _ in took]), usual([t for _, t in took])
