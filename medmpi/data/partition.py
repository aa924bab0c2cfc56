"""Who trains on which sample: S0 eq. 3, D = union of D_i with D_i and D_j disjoint, with nothing padded or dropped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .random import Purpose, permutation

Ids = NDArray[np.int64]


def epoch_order(n: int, seed: int, epoch: int) -> Ids:
    """The order of ``n`` samples in an epoch: a permutation that depends on (n, seed, epoch) alone, int64."""
    if n < 0 or epoch < 0:
        raise ValueError(f"epoch_order: n is {n} and epoch {epoch}, expected neither below 0")
    return permutation(n, seed=seed, epoch=epoch, purpose=Purpose.ORDER)


def global_batches(order: Ids, batch_size: int, *, drop_last: bool = False) -> list[Ids]:
    """``order`` cut into batches over all ranks together; the last one may be shorter unless ``drop_last``."""
    if batch_size < 1:
        raise ValueError(f"global_batches: batch_size is {batch_size}, expected 1 or more")
    stop = len(order) // batch_size * batch_size if drop_last else len(order)
    return [order[i : min(i + batch_size, stop)] for i in range(0, stop, batch_size)]


def share(ids: Ids, rank: int, size: int, *, unit: int = 1) -> tuple[int, Ids]:
    """Rank's contiguous part of ``ids`` and its first element's position; parts differ by at most ``unit`` samples.

    The parts of all ranks, in rank order, are ``ids`` again: complete and disjoint. With fewer samples than ranks some
    parts are empty. Parts begin at multiples of ``unit``.
    """
    if unit < 1:
        raise ValueError(f"share: unit is {unit}, expected 1 or more")
    if not 0 <= rank < size:
        raise ValueError(f"share: rank is {rank} of size {size}, expected 0 <= rank < size")
    units = -(-len(ids) // unit)
    first, stop = (min(units * r // size * unit, len(ids)) for r in (rank, rank + 1))
    return first, ids[first:stop]
