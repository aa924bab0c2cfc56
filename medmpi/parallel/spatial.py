"""Rows of images that other ranks hold: fetched for a layer's windows, and their gradients given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import Array, empty
from .world import World

Rows: TypeAlias = tuple[int, int]
Halo: TypeAlias = list[tuple[int, int, Array]]  # first row, row after the last, values
_FETCH, _RETURN = 4, 5


class RowExchange:
    """The tiles of one image: rank t of ``world`` holds the rows from ``edges[t]`` to ``edges[t + 1]`` of a value.

    Values are (N, H, W, C) float32. Every call is made by all tiles, with the same ``edges`` and ``needs``.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.tile, self.tiles = world.rank, world.size

    def sum(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all tiles, in a new array."""
        return self._world.sum(np.array(array, np.float64), "sum over tiles")

    def fetch(self, x: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Halo:
        """The rows of ``needs[tile]`` that this rank does not hold, from those that do."""
        return self.begin_fetch(x, edges, needs)()

    def begin_fetch(self, x: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Callable[[], Halo]:
        """As ``fetch``, in two steps: what is returned waits for the rows, so that there is time to compute others."""
        pairs = list(self._overlaps(edges, needs))
        inbox = [(rows, self._room(x, rows), peer) for peer, rows in pairs]
        outbox = [
            (np.ascontiguousarray(x[:, a - edges[self.tile] : b - edges[self.tile]]), peer)
            for peer, (a, b) in self._wanted_from_me(edges, needs)
        ]
        wait = self._begin_swap([(array, peer) for _, array, peer in inbox], outbox, _FETCH, "fetch rows")

        def finish() -> Halo:
            wait()
            return [(a, b, array) for (a, b), array, _ in inbox]

        return finish

    def join(self, x: Array, halo: Halo, edges: Sequence[int], need: Rows) -> Array:
        """The rows ``need`` of the value, from this rank's ``x`` and what it has fetched."""
        first, stop = edges[self.tile], edges[self.tile + 1]
        if need == (first, stop) and not halo:
            return x
        joined: Array = empty((x.shape[0], need[1] - need[0], *x.shape[2:]))
        for a, b, rows in [(first, stop, x), *halo]:
            lo, hi = max(a, need[0]), min(b, need[1])
            if lo < hi:
                joined[:, lo - need[0] : hi - need[0]] = rows[:, lo - a : hi - a]
        return joined

    def give_back(self, dx: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Array:
        """The gradient of this rank's rows, from that of the rows each tile needed; ``dx`` may be used up."""
        return self.begin_give_back(dx, edges, needs)()

    def begin_give_back(self, dx: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Callable[[], Array]:
        """As ``give_back``, in two steps: what is returned waits for the other tiles' part and adds it."""
        first, stop = edges[self.tile], edges[self.tile + 1]
        need = needs[self.tile]
        outbox = [
            (np.ascontiguousarray(dx[:, a - need[0] : b - need[0]]), peer)
            for peer, (a, b) in self._overlaps(edges, needs)
        ]
        inbox = [(rows, self._room(dx, rows), peer) for peer, rows in self._wanted_from_me(edges, needs)]
        wait = self._begin_swap(
            [(array, peer) for _, array, peer in inbox], outbox, _RETURN, "give back gradients of rows"
        )
        if need == (first, stop):
            mine = dx
        else:
            mine = empty((dx.shape[0], stop - first, *dx.shape[2:]))
            lo, hi = max(first, need[0]), min(stop, need[1])
            if lo >= hi:
                lo = hi = first
            mine[:, : lo - first] = 0
            mine[:, hi - first :] = 0
            mine[:, lo - first : hi - first] = dx[:, lo - need[0] : hi - need[0]]

        def finish() -> Array:
            wait()
            for (a, b), rows, _ in inbox:  # in the order of the tiles: the same bits in every run
                mine[:, a - first : b - first] += rows
            return mine

        return finish

    def gather_rows(self, x: Array, edges: Sequence[int]) -> Array | None:
        """The whole value on tile 0, None on the others."""
        needs = [(0, edges[-1])] + [(0, 0)] * (self.tiles - 1)
        halo = self.fetch(x, edges, needs)
        return self.join(x, halo, edges, needs[0]) if self.tile == 0 else None

    def _overlaps(self, edges: Sequence[int], needs: Sequence[Rows]) -> Iterator[tuple[int, Rows]]:
        """Which other tiles hold which rows that this one needs."""
        for peer in range(self.tiles):
            a, b = max(edges[peer], needs[self.tile][0]), min(edges[peer + 1], needs[self.tile][1])
            if peer != self.tile and a < b:
                yield peer, (a, b)

    def _wanted_from_me(self, edges: Sequence[int], needs: Sequence[Rows]) -> Iterator[tuple[int, Rows]]:
        """Which other tiles need which of this one's rows."""
        for peer in range(self.tiles):
            a, b = max(edges[self.tile], needs[peer][0]), min(edges[self.tile + 1], needs[peer][1])
            if peer != self.tile and a < b:
                yield peer, (a, b)

    @staticmethod
    def _room(like: Array, rows: Rows) -> Array:
        return np.empty((like.shape[0], rows[1] - rows[0], *like.shape[2:]), np.float32)

    def _begin_swap(
        self, inbox: Sequence[tuple[Array, int]], outbox: Sequence[tuple[Array, int]], tag: int, what: str
    ) -> Callable[[], None]:
        """Starts messages; what is returned waits for them. Swaps of a kind end in the order in which they began."""
        comm = self._world.comm
        requests = [(comm.Irecv(array, peer, tag), peer) for array, peer in inbox]
        requests += [(comm.Isend(array, peer, tag), peer) for array, peer in outbox]

        def finish() -> None:
            for request, peer in requests:
                self._world.wait_for([request], peer, f"{what} with tile {peer}")

        return finish
