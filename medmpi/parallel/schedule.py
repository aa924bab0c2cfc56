"""In which order a pipeline stage runs the forward and backward passes of its micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

SCHEDULES = ("1f1b", "gpipe")
Action: TypeAlias = tuple[Literal["forward", "backward"], int]


def gpipe(micro_batches: int) -> Iterator[Action]:
    """All forward passes, then all backward passes (Huang et al. 2019): every micro-batch's activations are held."""
    yield from (("forward", i) for i in range(micro_batches))
    yield from (("backward", i) for i in range(micro_batches))


def one_f_one_b(stage: int, stages: int, micro_batches: int) -> Iterator[Action]:
    """One forward, one backward (Narayanan et al. 2019): at most ``stages - stage`` micro-batches are held."""
    ahead = min(stages - 1 - stage, micro_batches)
    yield from (("forward", i) for i in range(ahead))
    for i in range(micro_batches - ahead):
        yield "forward", ahead + i
        yield "backward", i
    yield from (("backward", i) for i in range(micro_batches - ahead, micro_batches))


def micro_batch_edges(n: int, micro_batches: int, unit: int = 1) -> list[int]:
    """Where micro-batches of ``n`` samples begin and end: at multiples of ``unit``, sizes as even as that allows.

    None is empty unless ``n`` is 0, so there may be fewer than asked for.
    """
    units = -(-n // unit)
    count = max(1, min(micro_batches, units))
    return [min(units * i // count * unit, n) for i in range(count + 1)]
