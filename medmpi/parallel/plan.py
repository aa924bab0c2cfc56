"""What a training step would take on a grid of ranks, from measured layers and a measured or stated network.

An oracle in the sense of Kahira et al. (2021): layer times are measured, the rest is a model. Passes of micro-batches
through stages are simulated; sums of gradients, messages and batch statistics follow latency and bandwidth.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log2
from typing import TypeAlias

from .cuts import UNWANTED, balanced_cuts
from .schedule import one_f_one_b

Event: TypeAlias = tuple[str, int, int]  # kind, stage, micro-batch
Task: TypeAlias = tuple[float, Event | None, Event | None]  # seconds, what it waits for, what it completes


@dataclass(frozen=True)
class LayerCost:
    """Seconds of a node's passes of so many ``images``, ascending; in between and beyond along straight lines.

    Bytes of parameters, and per image of values kept; ``sends`` are the bytes per image alive before the node;
    ``meets``: it normalises over the whole batch.
    """

    name: str
    images: tuple[float, ...]
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    parameter_bytes: int
    kept_bytes: int
    sends: int
    meets: bool = False

    def seconds(self, images: float) -> float:
        """Forward and backward of one pass."""
        return self.forward(images) + self.backward(images)

    def forward(self, images: float) -> float:
        """Seconds of a forward pass."""
        return along(self.images, self.forward_seconds, images)

    def backward(self, images: float) -> float:
        """Seconds of a backward pass."""
        return along(self.images, self.backward_seconds, images)


def along(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The value at ``x`` of straight lines through the points, or through the only one and 0; never below 0."""
    if len(xs) == 1:
        return ys[0] * x / xs[0]
    i = min(max(bisect(xs, x), 1), len(xs) - 1)
    slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
    return max(ys[i - 1] + slope * (x - xs[i - 1]), 0.0)


@dataclass(frozen=True)
class Network:
    """Messages take ``latency`` + bytes / ``bandwidth``; inside a node sums take bytes / ``sum_bandwidth`` per rank.

    ``node_size`` ranks share a node; what crosses nodes takes ``far_latency`` and ``far_bandwidth`` (seconds, bytes/s).
    """

    latency: float
    bandwidth: float
    meeting: float  # of the ranks of a node for a few numbers, seconds
    sum_bandwidth: float
    node_size: int
    far_latency: float = 2e-6
    far_bandwidth: float = 12.5e9

    def transfer(self, size: float) -> float:
        """A message to a neighbour in the same node (stages of a replica are neighbours)."""
        return self.latency + size / self.bandwidth

    def meet(self, ranks: int, inside: float | None = None) -> float:
        """A sum of a few numbers over so many ranks; ``inside`` is what it takes in a node, where that is known."""
        if ranks == 1:
            return 0.0
        nodes = -(-ranks // self.node_size)
        seconds = self.meeting if inside is None else inside
        return seconds + 2 * ceil(log2(nodes)) * self.far_latency if nodes > 1 else seconds

    def sum(self, size: float, ranks: int) -> float:
        """A sum of gradients over so many ranks: in shared memory, then a ring between nodes."""
        if ranks == 1 or size == 0:
            return 0.0
        inside, nodes = min(ranks, self.node_size), -(-ranks // self.node_size)
        seconds = self.meeting + (size / self.sum_bandwidth if inside > 1 else 0.0)
        if nodes > 1:
            seconds += 2 * (nodes - 1) / nodes * size / self.far_bandwidth + 2 * ceil(log2(nodes)) * self.far_latency
        return seconds


@dataclass(frozen=True)
class Machine:
    """What was measured of a node's ranks, entry k for k + 1 of them at once.

    ``crowding``: how many times slower a pass is than alone; ``update``: seconds per byte of parameters to zero the
    gradients, take their norm and update what so many ranks share. ``staged``: how many times slower the passes of 1,
    2, 4, ... micro-batches are than planned passes of as many images: memory is not planned between stages, and layers
    that need the whole batch meet. ``meeting``: seconds of a merge of statistics within a pass, with the wait for
    whoever is late; empty where that was not measured.
    """

    crowding: tuple[float, ...]
    update: tuple[float, ...]
    staged: tuple[float, ...] = (1.0,)
    meeting: tuple[float, ...] = ()

    def slowdown(self, busy: float) -> float:
        """How much slower a pass is with so many busy ranks in a node."""
        return _entry(self.crowding, busy)

    def joining(self, ranks: float) -> float | None:
        """Seconds in which so many ranks of a node merge statistics; None where that was not measured."""
        return _entry(self.meeting, ranks) if self.meeting else None

    def in_pieces(self, micro_batches: int) -> float:
        """How much slower passes of a stage are in so many micro-batches."""
        return _entry(self.staged, 1 + log2(micro_batches))

    def updating(self, size: float, replicas: int) -> float:
        """Seconds to update parameters of ``size`` bytes that so many ranks of a node hold together."""
        return _entry(self.update, replicas) * size


def _entry(values: Sequence[float], count: float) -> float:
    """Between what was measured; beyond it the last."""
    at = min(max(count - 1, 0.0), len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


@dataclass(frozen=True)
class Prediction:
    """A shape with its predicted step. ``memory`` is that of the fullest rank, bytes."""

    replicas: int
    stages: int
    micro_batches: int
    cuts: tuple[int, ...]
    seconds: float
    compute: float
    communicate: float
    memory: float

    def describe(self) -> str:
        """``2 x 3, 4 micro-batches``."""
        return f"{self.replicas} x {self.stages}, {self.micro_batches} micro-batch{'es' * (self.micro_batches > 1)}"


def predict(
    costs: Sequence[LayerCost],
    batch: int,
    shape: tuple[int, int, int],
    network: Network,
    machine: Machine,
    *,
    whole_batch: bool = True,
    schedule: str = "1f1b",
    copies: float = 3,
    cuts: Sequence[int] | None = None,
) -> Prediction:
    """The step of a global ``batch`` on (replicas, stages, micro_batches); ``copies`` of the parameters are held.

    ``whole_batch`` says that layers which meet take statistics of the whole batch. ValueError where there are fewer
    layers than stages or fewer images than replicas.
    """
    replicas, stages, pieces = shape
    if batch < replicas:
        raise ValueError(f"predict: {replicas} replicas share {batch} images, expected one each at least")
    images = ceil(batch / replicas)
    pieces = min(pieces, images)
    shape = replicas, stages, pieces
    each = images / pieces
    if cuts is None:
        send = [2 * network.transfer(c.sends * each) for c in costs]
        for i in range(1, len(costs)):  # a normalisation stays with the layer whose result it reads
            send[i] += UNWANTED if costs[i].meets and not costs[i - 1].meets else 0.0
        cuts = balanced_cuts([c.seconds(each) for c in costs], stages, transfer=send) if stages > 1 else []
    parts = [list(costs[a:b]) for a, b in pairwise([0, *cuts, len(costs)])]
    joint = whole_batch and any(c.meets for c in costs)
    together = (joint and pieces > 1) or schedule == "gpipe"
    meet = network.meet(replicas, machine.joining(min(replicas, network.node_size))) if joint else 0.0
    slow = machine.slowdown(min(_at_once(shape, joint), network.node_size))
    if stages > 1:
        slow *= machine.in_pieces(pieces)
    transfers = [0.0, *(network.transfer(costs[cut].sends * each) for cut in cuts)]
    work = [_tasks(part, s, stages, pieces, each, slow, meet, joint, together) for s, part in enumerate(parts)]
    span = _simulate(work, transfers)
    sums = max(network.sum(sum(c.parameter_bytes for c in part), replicas) for part in parts)
    update = machine.updating(
        max(sum(c.parameter_bytes for c in part) for part in parts), min(replicas, network.node_size)
    )
    meetings = sum(2 * meet for c in costs if c.meets) if stages == 1 or pieces == 1 else 0.0
    held = [pieces if together else min(stages - s, pieces) for s in range(stages)]
    memory = max(
        copies * sum(c.parameter_bytes for c in part) + sum(c.kept_bytes for c in part) * each * n
        for part, n in zip(parts, held, strict=True)
    )
    compute = max(sum(c.seconds(each) for c in part) for part in parts) * pieces * slow
    seconds = span + sums + update
    communicate = sums + meetings + sum(2 * pieces * t for t in transfers) / max(1, stages)
    return Prediction(replicas, stages, pieces, tuple(cuts), seconds, compute, communicate, memory)


def _at_once(shape: tuple[int, int, int], joint: bool) -> int:
    """How many ranks of a shape compute at a time: stages that need the whole batch do so in turn."""
    replicas, stages, pieces = shape
    return replicas * (1 if joint else min(stages, pieces))


def _tasks(
    part: Sequence[LayerCost],
    stage: int,
    stages: int,
    pieces: int,
    each: float,
    slow: float,
    meet: float,
    joint: bool,
    together: bool,
) -> list[Task]:
    """What a stage does in a step, in order."""

    def arrives(kind: str, i: int) -> Event | None:
        before = stage - 1 if kind == "forward" else stage + 1
        return (kind, before, i) if 0 <= before < stages else None

    meetings = [k for k, c in enumerate(part) if c.meets] if joint and together else []
    rest = meet * sum(c.meets for c in part) if joint and not meetings else 0.0
    forward = [c.forward(each) * slow for c in part]
    backward = [c.backward(each) * slow for c in part]
    tasks: list[Task] = []
    if not together:
        for kind, i in one_f_one_b(stage, stages, pieces):
            tasks.append((sum(forward if kind == "forward" else backward) + rest, arrives(kind, i), (kind, stage, i)))
        return tasks
    for kind, seconds, stops in (
        ("forward", forward, meetings),
        ("backward", backward[::-1], [len(part) - 1 - k for k in reversed(meetings)]),
    ):
        if not stops:
            tasks += [(sum(seconds) + rest, arrives(kind, i), (kind, stage, i)) for i in range(pieces)]
            continue
        # up to the first layer that meets, one micro-batch after another as they come; then all in step
        tasks += [(sum(seconds[: stops[0]]), arrives(kind, i), None) for i in range(pieces)]
        tasks.append((sum(seconds[stops[0] : stops[-1]]) * pieces + meet * len(stops), None, None))
        tasks += [(sum(seconds[stops[-1] :]), None, (kind, stage, i)) for i in range(pieces)]
    return tasks


def _simulate(work: list[list[Task]], transfers: Sequence[float]) -> float:
    """When the last stage is through with its tasks; a message takes ``transfers[s]`` between stages s - 1 and s."""
    done: dict[Event, float] = {}
    clock, at = [0.0] * len(work), [0] * len(work)
    while any(at[s] < len(tasks) for s, tasks in enumerate(work)):
        moved = False
        for s, tasks in enumerate(work):
            while at[s] < len(tasks):
                seconds, needs, gives = tasks[at[s]]
                if needs is not None and needs not in done:
                    break
                came = 0.0 if needs is None else done[needs] + transfers[max(s, needs[1])]
                clock[s] = max(clock[s], came) + seconds
                if gives is not None:
                    done[gives] = clock[s]
                at[s] += 1
                moved = True
        if not moved:
            raise RuntimeError("plan: the stages wait for each other")
    return max(clock)


def shapes(ranks: int, batch: int, layers: int, whole_batch: bool) -> Iterator[tuple[int, int, int]]:
    """Every (replicas, stages, micro-batches) of so many ranks worth a look."""
    for stages in (s for s in range(1, min(ranks, layers, 64) + 1) if ranks % s == 0):
        replicas = ranks // stages
        if replicas > batch:
            continue
        images = -(-batch // replicas)
        for pieces in (1, *(2**k for k in range(1, 8))) if stages > 1 else (1,):
            if pieces <= images and not (whole_batch and pieces > 4):
                yield replicas, stages, pieces


def choose(predictions: Sequence[Prediction], memory: float) -> Prediction | None:
    """The fastest that fits ``memory`` bytes per rank; among equals the one with fewer stages. None where none fits."""
    fitting = [p for p in predictions if p.memory <= memory]
    return min(fitting, key=lambda p: (p.seconds, p.stages, p.micro_batches), default=None)
