"""Shares of the global batch that follow the ranks' measured speed: S0's dynamic workload scheduling.

The set of samples of a global batch does not change, only who computes which of them, and the loss is divided by the
global count: the shares change the order of float sums, and with exact gradients nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .world import World

_WINDOW = 6  # updates that are measured before the ranks compare
_SKIPPED = 2  # first steps of a window: new shapes meet cold caches and pools
_LEAST_GAIN = 0.08  # of the step time; smaller ones are noise, and a change drops the batches that are loaded ahead
_MOST = 4.0  # times the even share: memory was planned for that

Shares = NDArray[np.int64]


def split_units(n: int, weights: NDArray[np.float64], unit: int = 1) -> Shares:
    """Samples per rank, int64: ``n`` in proportion to ``weights``, in multiples of ``unit`` but for the last ones.

    Rounded by largest remainder; every rank has one unit or more where there are enough.
    """
    units = -(-n // unit)
    least = 1 if units >= len(weights) else 0
    exact = (units - least * len(weights)) * weights / weights.sum()
    whole = np.floor(exact).astype(np.int64)
    missing = units - least * len(weights) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    edges = np.minimum(np.cumsum(whole + least) * unit, n)
    shares: Shares = np.diff(edges, prepend=0)
    return shares


@dataclass(frozen=True)
class Change:
    """New shares of a full batch, the ranks' seconds per sample, and the step's computing time before and after."""

    shares: Shares
    per_sample: NDArray[np.float64]
    before: float
    after: float


class Balance:
    """Who computes which part of a batch; on request, after the ranks' speed.

    Parts are contiguous, in rank order, complete and disjoint. ``observe`` takes each step's samples and computing
    seconds of this rank; ``adjust``, called by all ranks after each update, moves the shares when that pays.
    """

    def __init__(self, world: World, batch_size: int, *, unit: int = 1, active: bool = True) -> None:
        self._world, self._batch, self._unit = world, batch_size, unit
        self.active = active and world.size > 1
        self.weights = np.full(world.size, 1.0 / world.size)
        self._speed: NDArray[np.float64] | None = None
        self._seen: list[float] = []
        self._skip = _SKIPPED
        self._updates = 0

    def shares(self, n: int) -> Shares:
        """How many of ``n`` samples each rank computes."""
        return split_units(n, self.weights, self._unit)

    def part(self, ids: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """This rank's part of ``ids`` and the position of its first element in them."""
        shares = self.shares(len(ids))
        first = int(shares[: self._world.rank].sum())
        return first, ids[first : first + int(shares[self._world.rank])]

    def observe(self, samples: int, seconds: float) -> None:
        """This rank has computed so many samples in so many seconds, waiting not counted."""
        if self._skip:
            self._skip -= 1
        elif samples:
            self._seen.append(seconds / samples)

    def adjust(self) -> Change | None:
        """After each update, on all ranks: new shares if they pay, else None. Collective."""
        self._updates += 1
        if not self.active or self._updates % (_WINDOW + _SKIPPED):
            return None
        mine = float(np.median(self._seen)) if self._seen else 0.0
        self._seen.clear()
        measured = np.array(self._world.allgather(mine, "compare speeds"))
        if not (measured > 0).all():
            return None
        speed = 1.0 / measured
        if self._speed is not None:  # half of the last measure: one slow moment does not count fully
            speed = np.sqrt(speed * self._speed)
        self._speed = speed
        now = self.shares(self._batch)
        weights = _limited(speed / speed.sum())
        new = split_units(self._batch, weights, self._unit)
        before, after = float((now / speed).max()), float((new / speed).max())
        if after > before * (1 - _LEAST_GAIN):
            return None
        self.weights, self._skip = weights, _SKIPPED
        return Change(new, 1.0 / speed, before, after)


def _limited(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """No weight above ``_MOST`` times the even one; the others take what is cut off."""
    limit = min(1.0, _MOST / len(weights))
    for _ in range(len(weights)):
        over = weights >= limit
        if not (weights > limit).any() or over.all():
            break
        rest = weights[~over].sum()
        weights = np.where(over, limit, weights * (1 - limit * over.sum()) / rest)
    return weights
