"""Batch statistics over all ranks: what batch normalisation needs to see the global batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..kernels.collective import merge_statistics_of
from .world import World

_MOST = 1 << 12  # channels that go in one piece


class RankStatistics:
    """Merges statistics in rank order, in float64: the same bits on all ranks and in every run.

    ``nn.Context.statistics`` takes one. All calls are collective; a rank whose share of the batch is empty joins with
    count 0 and any (finite) mean.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def merge(
        self, count: int, mean: NDArray[np.float64], m2: NDArray[np.float64]
    ) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """Count, mean and sum of squared deviations (float64 (C,)) of the samples of all ranks (Chan et al. 1979)."""
        if self._world.size == 1:
            return count, mean, m2
        total, all_mean, all_m2 = 0, np.empty_like(mean), np.empty_like(m2)
        for at in range(0, max(mean.size, 1), _MOST):
            piece = slice(at, at + _MOST)
            total = self._world.merge_statistics(count, mean[piece], m2[piece], all_mean[piece], all_m2[piece])
        return total, all_mean, all_m2

    def start_sum(self, array: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        """Begins the sum over all ranks; the call that it returns gives it, in a new array."""
        return self._world.start_sum(np.array(array, np.float64), "sum of batch statistics")

    def merge_parts(self, parts: NDArray[np.float64]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """As ``merge``, of rows (count, mean, m2): the same bits for any number of ranks that hold the same parts."""
        rows = self._gather(parts)
        channels = (rows.shape[1] - 1) // 2
        mean, m2 = np.empty(channels), np.empty(channels)
        return int(merge_statistics_of(rows, mean, m2)), mean, m2

    def sum_parts(self, parts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of all ranks' rows: the same bits for any number of ranks that hold the same parts."""
        total: NDArray[np.float64] = self._gather(parts).sum(0)
        return total

    def _gather(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate(self._world.allgather(rows, "gather batch statistics"))
