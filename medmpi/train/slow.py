"""A drill: makes a rank compute slower than it could, to see what balancing and the time accounts make of it.

``MEDMPI_SLOW=1:3`` makes rank 1 take three times as long for every layer; ``1:3,2:1.5`` two of them. It keeps the core
busy meanwhile, as a slow processor would.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medmpi import nn
from medmpi.train.failure import USAGE, Failure

if TYPE_CHECKING:
    from medmpi.parallel import World

VARIABLE = "MEDMPI_SLOW"
# all ways in which a pass through the graph has a layer compute
METHODS = (
    "forward", "forward_meet", "forward_after", "backward", "backward_inputs", "start_backward_meet", "backward_after",
)  # fmt: skip


def slow_down(graph: nn.Graph, world: World) -> float:
    """Applies what the environment asks for to this rank's layers; its factor, 1 where nothing is asked."""
    factor = _factors(os.environ.get(VARIABLE, "")).get(world.rank, 1.0)
    if factor > 1:
        drill = _Drill(factor, world)
        for node in graph.nodes:
            for name in METHODS:
                setattr(node.layer, name, drill.slowed(getattr(node.layer, name)))
    return factor


def _factors(text: str) -> dict[int, float]:
    try:
        pairs = (pair.split(":") for pair in text.split(",") if pair.strip())
        return {int(rank): float(factor) for rank, factor in pairs}
    except ValueError:
        raise Failure(f"{VARIABLE} is '{text}', expected RANK:FACTOR such as 1:3", USAGE) from None


class _Drill:
    """Keeps the core busy after each piece of work; for pieces within a piece, after the outer one alone."""

    def __init__(self, factor: float, world: World) -> None:
        self._factor, self._world, self._inside = factor, world, False

    def slowed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method`` in ``factor`` times its time, but for what it waits for other ranks; so too what it leaves for
        later (``Layer.backward_inputs``)."""

        @functools.wraps(method)
        def slowed(*args: Any, **named: Any) -> Any:
            if self._inside:
                return method(*args, **named)
            self._inside = True
            try:
                start, waited = time.perf_counter(), sum(self._world.seconds.values())
                result = method(*args, **named)
                took = time.perf_counter() - start - (sum(self._world.seconds.values()) - waited)
            finally:
                self._inside = False
            end = time.perf_counter() + (self._factor - 1) * took
            while time.perf_counter() < end:
                pass
            if getattr(method, "__name__", "") == "backward_inputs" and result[1] is not None:
                return result[0], self.slowed(result[1])
            return result

        return slowed
