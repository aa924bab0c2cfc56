"""What happens when a gradient is not finite: nobody's weights change, and the culprit is named.

The reduced gradient is the same on all ranks and is not finite if any rank's is, so all ranks notice in the same step
without another message. Only then is the step computed again, locally, to find where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels, nn
from medmpi.kernels.arrays import Array
from medmpi.train.failure import DIVERGED, Failure

if TYPE_CHECKING:
    from medmpi.parallel import World

IN_A_ROW = 3
_SHOWN = 8


class Buffers:
    """The graph's buffers (running statistics) as they were before a step; ``flat`` holds those on a device."""

    def __init__(self, graph: nn.Graph, flat: Array | None = None) -> None:
        self._live = [
            (node.layer.b, name)
            for node in graph.nodes
            for name, value in node.layer.b.items()
            if flat is None or value.dtype.kind != "f"
        ]
        self._kept: list[NDArray[Any]] = [np.empty(0)] * len(self._live)
        self._flat, self._kept_flat = flat, flat

    def keep(self) -> None:
        self._kept = [buffers[name].copy() for buffers, name in self._live]
        if self._flat is not None:
            self._kept_flat = self._flat.copy()

    def restore(self) -> None:
        for (buffers, name), kept in zip(self._live, self._kept, strict=True):
            buffers[name][...] = kept
        if self._flat is not None:
            self._flat[...] = self._kept_flat


class NonFiniteGuard:
    """Counts steps without a usable gradient; ends the run after three in a row."""

    def __init__(self, world: World, replica: int, parameters: nn.Parameters, warn: Callable[[str], None]) -> None:
        self._world, self._replica, self._parameters, self._warn = world, replica, parameters, warn
        self._in_a_row = 0

    def good(self) -> None:
        self._in_a_row = 0

    def bad(self, step: int, ids: Sequence[int], images: NDArray[np.float32], again: Callable[[], float]) -> None:
        """Called by all ranks for the same step; Failure (exit 4) from the third in a row on.

        again() computes the replica's loss and gradient once more without other replicas. `images` is empty where the
        rank has none. The gradient is zero afterwards.
        """
        self._in_a_row += 1
        parameters = self._parameters
        parameters.zero_grad()
        loss = again()
        spoilt = [name for name, gradient in parameters.named_gradients() if not kernels.all_finite(gradient)]
        parameters.zero_grad()
        mine: tuple[list[int], str, bool] | None = None
        if spoilt or not np.isfinite(loss):
            inside = [bool(np.isfinite(image).all()) for image in images]
            pixels = [int(i) for i, fine in zip(ids, inside, strict=False) if not fine]
            # Backward goes from the last layer to the first, so the last name in the list was spoilt first.
            mine = (pixels or [int(i) for i in ids], spoilt[-1] if spoilt else "the loss", bool(pixels))
        found = self._world.allgather((self._replica, mine))
        first: dict[
            int, tuple[int, tuple[list[int], str, bool]]
        ] = {}  # by replica: its last stage, or where pixels are
        for rank, (replica, entry) in enumerate(found):
            if entry is not None and not (replica in first and first[replica][1][2]):
                first[replica] = rank, entry
        culprits = [f"rank {rank}, {_describe(entry)}" for rank, entry in first.values()]
        where = "; ".join(culprits) or "in the sum over ranks only: every rank's own gradient is finite"
        message = f"step {step}: gradient is not finite ({where})"
        if self._in_a_row >= IN_A_ROW:
            raise Failure(f"diverged: {message}, {IN_A_ROW} steps in a row; try a lower --lr or --clip-norm", DIVERGED)
        self._warn(f"{message}; update left out")


def _describe(entry: tuple[list[int], str, bool]) -> str:
    ids, name, in_pixels = entry
    listed = " ".join(map(str, ids[:_SHOWN])) + (" ..." if len(ids) > _SHOWN else "")
    return f"samples {listed}, {'in the input' if in_pixels else f'first in {name}'}"
