"""How fast the ranks exchange messages and sums: latency and bandwidth, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from .plan import Network
from .world import World

_SMALL, _LARGE, _ROUNDS, _CALLS = 8, 8 << 20, 5, 21  # bytes, bytes, times, times
_LEAST, _MOST = 1 << 18, 1 << 27  # bytes of gradients


def probe(world: World, gradients: int = _LARGE) -> Network:
    """Times messages between ranks 0 and 1, sums of a few numbers and of gradients of so many bytes. Collective.

    With ranks on several nodes, messages between the first and the last node give what crosses nodes. Alone, a rank has
    nothing to measure and gets the figures of a usual machine.
    """
    usual = Network(2e-6, 5e9, 5e-6, 5e9, 1)
    if world.size == 1:
        return usual
    latency, bandwidth = _link(world, 0, 1)
    far = (usual.far_latency, usual.far_bandwidth)
    if world.nodes > 1:
        far = _link(world, 0, world.node_ranks[-1][0])
    size = min(max(gradients, _LEAST), _MOST)  # as large as they are: what fits the caches is summed faster
    tiny, large = np.zeros(8), world.allocate(size // 4)
    meeting = _typical(world, lambda: world.sum(tiny))
    summed = _typical(world, lambda: world.sum(large))
    figures = (latency, bandwidth, meeting, size / max(summed - meeting, summed / 10), world.local_size, *far)
    latency, bandwidth, meeting, sums, size, far_latency, far_bandwidth = world.broadcast(figures)
    return Network(latency, bandwidth, meeting, sums, int(size), far_latency, far_bandwidth)


def _typical(world: World, action: Callable[[], object]) -> float:
    """The median call, all ranks together; seconds. Where ranks share cores most calls wait for one that sleeps."""
    took = []
    for _ in range(_CALLS):
        world.barrier("probe")
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def _link(world: World, a: int, b: int) -> tuple[float, float]:
    """Latency and bandwidth of messages between two ranks, from there-and-back trips; the others wait."""
    times = []
    for size in (_SMALL, _LARGE):
        data = np.zeros(size, np.uint8)
        best = float("inf")
        for _ in range(_ROUNDS):
            world.barrier("probe")
            start = time.perf_counter()
            if world.rank == a:
                world.wait_for([world.comm.Isend(data, b, 9)], b, "probe")
                world.wait_for([world.comm.Irecv(data, b, 9)], b, "probe")
            elif world.rank == b:
                world.wait_for([world.comm.Irecv(data, a, 9)], a, "probe")
                world.wait_for([world.comm.Isend(data, a, 9)], a, "probe")
            best = min(best, (time.perf_counter() - start) / 2)
        times.append(best)
    return times[0], _LARGE / max(times[1] - times[0], times[1] / 10)
