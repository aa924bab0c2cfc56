"""A drill: makes a rank compute slower than it could, to see what balancing and the time accounts make of it.

``MEDMPI_SLOW=1:3`` makes rank 1 take three times as long for every layer; ``1:3,2:1.5`` two of them. It keeps the core
busy meanwhile, as a slow processor would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medmpi import nn
from medmpi.train.failure import USAGE, Failure
from medmpi.train.layer_calls import wrap_layers

if TYPE_CHECKING:
    from medmpi.parallel import World

VARIABLE = "MEDMPI_SLOW"


def slow_down(graph: nn.Graph, world: World) -> float:
    """Applies what the environment asks for to this rank's layers; its factor, 1 where nothing is asked."""
    factor = _factors(os.environ.get(VARIABLE, "")).get(world.rank, 1.0)
    if factor > 1:
        wrap_layers(graph, lambda _: _longer(factor, world))
    return factor


def _factors(text: str) -> dict[int, float]:
    try:
        pairs = (pair.split(":") for pair in text.split(",") if pair.strip())
        return {int(rank): float(factor) for rank, factor in pairs}
    except ValueError:
        raise Failure(f"{VARIABLE} is '{text}', expected RANK:FACTOR such as 1:3", USAGE) from None


@contextmanager
def _longer(factor: float, world: World) -> Iterator[None]:
    """What is inside takes ``factor`` times its time, but for what it waits for other ranks."""
    start, waited = time.perf_counter(), sum(world.seconds.values())
    yield
    took = time.perf_counter() - start - (sum(world.seconds.values()) - waited)
    end = time.perf_counter() + (factor - 1) * took
    while time.perf_counter() < end:
        pass
