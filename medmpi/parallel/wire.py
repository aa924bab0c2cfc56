"""Sums between nodes whose numbers travel as bfloat16: half the bytes, each rounded to eight significant bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..kernels.arrays import Array
from ..kernels.collective import sum_bfloat16, to_bfloat16


class HalfSums:
    """Adds slices of an array over the ranks of ``comm`` (nodes' first ranks), in the background.

    Each rank gets its share of a slice from all others, adds it in rank order in float32, and hands the sum to all:
    what a ring sends, in half the bytes. Every contribution and the sum are rounded once, to the nearest, each by at
    most ``2^-8`` of it: the result is within ``(2^-7 + 2^-16) s`` where ``s`` is the sum of the contributions' sizes.
    All ranks get the same bits, in every run. Infinities and what is no number arrive as such.
    """

    def __init__(self, comm: Any) -> None:
        # messages of a kind are matched in the order in which they begin, and the two kinds begin at different times
        self._scatter, self._gather = comm.Dup(), comm.Dup()
        self._slices: list[_Slice] = []

    def begin(self, part: Array) -> None:
        """Starts the sum of a slice, in place; all ranks begin the same ones in the same order."""
        self._slices.append(_Slice(self._scatter, part))

    def __len__(self) -> int:
        """Slices begun since the last ``finish``."""
        return len(self._slices)

    def poll(self) -> None:
        """Lets messages make progress."""
        for one in self._slices:
            if not one.gathering and not one.try_to_gather(self._gather, wait=False):
                return  # the later ones must not gather before it
        for one in self._slices:
            one.test()

    def finish(self) -> None:
        """Waits until all slices hold their sums."""
        for one in self._slices:
            one.try_to_gather(self._gather, wait=True)
        for one in self._slices:
            one.finish()
        self._slices.clear()


class _Slice:
    """One slice: first its pieces come from all ranks, then everybody's sums."""

    def __init__(self, comm: Any, part: Array) -> None:
        self._part, self._rank = part, comm.rank
        edges = [part.size * r // comm.size for r in range(comm.size + 1)]
        self._counts, self._starts = [b - a for a, b in pairwise(edges)], edges[:-1]
        self._half = np.empty(part.size, np.uint16)
        to_bfloat16(part, self._half)
        own = self._counts[self._rank]
        self._parts = np.empty((comm.size, own), np.uint16)
        self._request = comm.Ialltoallv(
            [self._half, (self._counts, self._starts), _type()],
            [self._parts, ([own] * comm.size, [own * r for r in range(comm.size)]), _type()],
        )
        self.gathering = False

    def try_to_gather(self, comm: Any, *, wait: bool) -> bool:
        """Hands this rank's sums to all once its pieces are there; whether that has begun."""
        if self.gathering:
            return True
        if wait:
            self._request.Wait()
        elif not self._request.Test():
            return False
        total = np.empty(self._parts.shape[1], np.float32)
        sum_bfloat16(self._parts, total)
        self._mine = np.empty(total.size, np.uint16)
        to_bfloat16(total, self._mine)
        self._request = comm.Iallgatherv([self._mine, _type()], [self._half, (self._counts, self._starts), _type()])
        self.gathering = True
        return True

    def test(self) -> None:
        """Lets MPI make progress."""
        self._request.Test()

    def finish(self) -> None:
        """Waits for everybody's sums and widens them."""
        self._request.Wait()
        sum_bfloat16(self._half.reshape(1, -1), self._part)


def _type() -> Any:
    from mpi4py import MPI

    return MPI.UINT16_T
