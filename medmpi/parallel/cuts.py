"""Where to cut a chain of layers into stages so that the slowest stage is as fast as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

UNWANTED = 1e6  # seconds to add to the transfer at a place where nothing should be cut unless it must


def balanced_cuts(
    seconds: Sequence[float],
    stages: int,
    *,
    transfer: Sequence[float] = (),
    fits: Callable[[int, int, int], bool] = lambda stage, first, stop: True,
) -> list[int]:
    """The ``stages - 1`` cuts that make the slowest stage fastest; among equal ones those that transfer least.

    ``seconds[i]`` is what node i takes, ``transfer[i]`` what sending the values alive before node i takes, which the
    stage before it pays. ``fits(stage, first, stop)`` says whether nodes first..stop-1 fit a rank's memory. A cut c
    comes before node c. ValueError where there are fewer nodes than stages or nothing fits.
    """
    n = len(seconds)
    if not 1 <= stages <= n:
        raise ValueError(f"balanced_cuts: {stages} stages of {n} nodes, expected from 1 to {n}")
    sums = [0.0, *accumulate(seconds)]
    send = [*transfer, *[0.0] * (n + 1 - len(transfer))]

    # best[stop]: (slowest stage, transfers in all, cuts) of the nodes before stop, for as many stages as treated so far
    nothing: tuple[float, float, tuple[int, ...]] = (float("inf"), float("inf"), ())
    best: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ()), *[nothing] * n]
    for stage in range(stages):
        following = [nothing] * (n + 1)
        last = n - (stages - stage - 1)
        for stop in range(n if stage == stages - 1 else stage + 1, last + 1):
            for first in range(stage, stop if stage else 1):
                before = best[first]
                pay = send[stop] if stop < n else 0.0
                slowest = max(before[0], sums[stop] - sums[first] + pay)
                choice = (slowest, before[1] + pay, (*before[2], first))
                if choice < following[stop] and before[0] < float("inf") and fits(stage, first, stop):
                    following[stop] = choice
        best = following
    if best[n][0] == float("inf"):
        raise ValueError(f"balanced_cuts: no {stages} stages fit the memory, expected more stages or smaller batches")
    return list(best[n][2][1:])
