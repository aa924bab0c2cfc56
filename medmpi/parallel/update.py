"""One copy of weights and optimizer state for all ranks of a node, of which each rank updates its part.

The first stage of ZeRO (Rajbhandari et al. 2020) with shared memory for its exchange: nobody gathers the updated
weights, for they are already where every rank reads them. The node's ranks hold one copy instead of one each, an update
is divided among them, and a layer's weights that one rank has read are in the cache that they share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..kernels.arrays import Array
from .memory import share
from .world import World

SMALLEST = 1 << 20  # bytes of weights from which an update is worth two meetings of the ranks
_UNIT = 1 << 10  # floats: parts begin at pages


class Movable(Protocol):
    """What is needed of ``nn.Parameters``."""

    value: Array

    def move(self, place: Callable[[Array], Array]) -> None:
        """The flat array becomes what ``place`` makes of it."""


class Stepper(Protocol):
    """What is needed of ``nn.Optimizer``."""

    def move(self, place: Callable[[Array], Array]) -> None:
        """The flat arrays become what ``place`` makes of them."""

    def step(self, part: slice = ...) -> None:
        """Updates a part of the parameters."""


class NodeUpdate:
    """Steps of ``optimizer`` on all ranks of ``world``, whose summed gradients are the same on each.

    Collective, and so is ``step``. Weights and optimizer state must be the same on all ranks; they move to memory that
    the ranks of a node share, unless they are small, the rank is alone, or ``active`` is false. The result is that of
    every rank doing all of it, bit for bit. From then on ranks write to the weights only in ``step``, or all the same
    values with a collective operation before and after.
    """

    def __init__(self, parameters: Movable, optimizer: Stepper, world: World, *, active: bool = True) -> None:
        self._world, self._optimizer = world, optimizer
        self.shared = active and world.local_size > 1 and parameters.value.nbytes >= SMALLEST
        self._part = slice(None)
        if not self.shared:
            return
        parameters.move(self._place)
        optimizer.move(self._place)
        size = parameters.value.size
        each = -(-size // (world.local_size * _UNIT)) * _UNIT
        self._part = slice(min(each * world.local_rank, size), min(each * (world.local_rank + 1), size))

    def _place(self, array: Array) -> Array:
        world = self._world
        with world.guard("share weights"):
            moved: Array = np.frombuffer(share(world.local_comm, array.nbytes), np.float32, array.size)
        if world.local_rank == 0:
            np.copyto(moved, array)
        world.group.barrier("share weights")
        return moved

    def step(self) -> None:
        """One step with the gradients as they are on this rank."""
        if not self.shared:
            self._optimizer.step()
            return
        self._meet("wait to update weights")  # until nobody needs the old weights any more
        self._optimizer.step(self._part)
        self._meet("update weights")

    def _meet(self, what: str) -> None:
        self._world.charge(0.0, self._world.group.barrier(what), what)
