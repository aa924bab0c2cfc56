"""Sums gradients over ranks while backward is still running."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from ..kernels.arrays import Array
from ..kernels.collective import BucketReducer
from .memory import share
from .wire import HalfSums
from .world import World

_CHUNK = 1 << 14  # floats that a rank adds at a time: with the other ranks' they fit the second-level cache


class FlatGradients(Protocol):
    """What the buckets need of ``nn.Parameters``."""

    grad: Array
    slices: dict[str, slice]


class NamedNode(Protocol):
    """What the buckets need of a graph's node."""

    @property
    def name(self) -> str:
        """The key into ``slices``."""
        ...


def bucket_edges(slices: dict[str, slice], n: int, bucket_bytes: int) -> list[int]:
    """Where buckets begin and end: whole nodes in the order of the array, each bucket at least ``bucket_bytes``."""
    edges = [0]
    for part in sorted(slices.values(), key=lambda s: (s.start, s.stop)):
        if (part.stop - edges[-1]) * 4 >= bucket_bytes:
            edges.append(part.stop)
    if edges[-1] < n or len(edges) == 1:
        edges.append(n)
    return edges


class GradientBuckets:
    """Sums ``parameters.grad`` over the ranks of ``world``, bucket by bucket, in rank order.

    Hand ``done`` to ``Graph.backward`` and call ``finish`` after it: the gradients then are the sums, on all ranks the
    same bits, in every run. ``parameters.grad`` must be from ``world.allocate``. On one node no rank waits before
    ``finish``: each looks in after every node and adds what all ranks have filled. Between nodes the first rank of each
    sends the sums of its node by ``Iallreduce``, polled after every node, or, when the world is ``reproducible``, adds
    the nodes' sums in their order at the end. With ``wire`` "bf16" those sums travel as bfloat16 (``HalfSums``).

    ``t_comm`` and ``t_wait`` are the seconds of the last step spent on adding and on waiting for slower ranks; they
    also go to ``world.seconds``. ``t_late`` is the part of ``t_comm`` that was left when backward was over.
    """

    def __init__(
        self, parameters: FlatGradients, world: World, bucket_bytes: int = 1 << 20, *, wire: str = "fp32"
    ) -> None:
        self._world, self._grad = world, parameters.grad
        self.edges = bucket_edges(parameters.slices, self._grad.size, bucket_bytes)
        self.t_comm = self.t_wait = self.t_late = 0.0
        self._bucket_of: dict[str, int] = {}  # nodes without parameters have none
        self._nodes_of = [0] * (len(self.edges) - 1)
        for name, part in parameters.slices.items():
            if part.stop > part.start:
                self._bucket_of[name] = bucket = int(np.searchsorted(self.edges, part.stop)) - 1
                self._nodes_of[bucket] += 1
        self._begin()
        self._reducer: Any = None
        if world.size == 1 or not self._grad.size:
            return
        where = world.find(self._grad)
        if where is None:
            raise ValueError("GradientBuckets: parameters.grad is an array of its own, expected one of world.allocate")
        segments, offset = where
        with world.guard("make gradient buckets"):
            counters = share(world.local_comm, BucketReducer.counter_bytes(world.local_size, len(self._nodes_of)))
        targets = world.local_size if world.nodes == 1 else 1
        addresses = [a + 4 * offset for a in segments.addresses]
        self._reducer = BucketReducer(world.group, counters, addresses, self.edges, _CHUNK, targets)
        # the array of the node's first rank: sums of the node, then sums between nodes, arrive there
        self._first = segments.of(0)[offset : offset + self._grad.size] if world.nodes > 1 else None
        self._requests: list[Any] = []
        self._half = HalfSums(world.leaders) if wire == "bf16" and world.nodes > 1 and world.leaders else None

    def _begin(self) -> None:
        self._open = list(self._nodes_of)  # nodes of each bucket that backward has not done yet
        self._seen: set[str] = set()
        self._filled = 0  # buckets from the front that this rank has filled
        self._comm = 0.0

    def done(self, node: NamedNode) -> None:
        """The node's gradients are complete on this rank. The hook of ``Graph.backward``; nodes in any order."""
        bucket = self._bucket_of.get(node.name)
        if bucket is None or self._reducer is None:
            return
        if node.name in self._seen:
            raise ValueError(f"GradientBuckets: node {node.name} is done a second time before finish()")
        start = time.perf_counter()
        self._seen.add(node.name)
        self._open[bucket] -= 1
        filled = self._filled
        while filled < len(self._open) and self._open[filled] == 0:
            filled += 1
        if filled > self._filled:
            self._filled = filled
            self._reducer.fill(filled)
        self._reducer.poll()
        if self._first is not None:
            self._send()
        self._charge(time.perf_counter() - start, 0.0)

    def finish(self) -> None:
        """Waits until the sums of all buckets are complete on all ranks. Collective."""
        if self._reducer is None:
            return
        group = self._world.group
        group.enter("sum of gradients")
        comm, wait = self._reducer.finish()
        if self._first is not None:
            start = time.perf_counter()
            if self._world.leaders is not None:
                self._world.leaders.Barrier()
            group.barrier("wait for the other nodes' gradients")
            arrived = time.perf_counter()
            wait += arrived - start
            self._finish_between_nodes()
            comm += time.perf_counter() - arrived
        self._reducer.next_step()
        group.leave()
        self._charge(comm, wait)
        self.t_comm, self.t_wait, self.t_late = self._comm, wait, comm
        self._begin()

    def _charge(self, comm: float, wait: float) -> None:
        self._comm += comm
        self._world.charge(comm, wait, "sum of gradients")

    def _send(self) -> None:
        """Starts the sums between nodes for the buckets that are complete on this node, and lets MPI make progress."""
        if self._world.leaders is None or self._first is None or self._world.reproducible:
            return
        if self._half is not None:
            while (sent := len(self._half)) < len(self._nodes_of) and self._reducer.complete(sent + 1):
                self._half.begin(self._first[self.edges[sent] : self.edges[sent + 1]])
            self._half.poll()
            return
        from mpi4py import MPI

        while (sent := len(self._requests)) < len(self._nodes_of) and self._reducer.complete(sent + 1):
            part = self._first[self.edges[sent] : self.edges[sent + 1]]
            self._requests.append(self._world.leaders.Iallreduce(MPI.IN_PLACE, part))
        MPI.Request.Testall(self._requests)

    def _finish_between_nodes(self) -> None:
        if self._world.leaders is not None:
            from mpi4py import MPI

            self._send()
            if self._half is not None:
                self._half.finish()
            MPI.Request.Waitall(self._requests)
            self._requests = []
            if self._world.reproducible and self._first is not None:
                self._world.sum_over_nodes(self._first)
        self._world.group.barrier("sum of gradients between nodes")
        if self._world.local_rank and self._first is not None:
            np.copyto(self._grad, self._first)
        self._world.group.barrier("copy of the gradients")  # the first rank changes its array only when all have it
