"""Local updates with periodic averaging of the weights (local SGD), instead of summing gradients at every step.

Every rank trains on its share of each batch alone; after ``every`` updates weights and the optimizer's state become
their means over ranks (McDonald et al. 2010, iterative parameter mixing; Stich 2019; momentum averaged as in Yu, Jin
and Yang 2019). Ranks talk and wait for each other ``every`` times less often, and the result depends on their number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medmpi.kernels.arrays import to_host
from medmpi.train.failure import DIVERGED, Failure
from medmpi.train.finite import IN_A_ROW

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medmpi import nn
    from medmpi.data import Batch
    from medmpi.parallel import World


class LocalUpdates:
    """What a rank does between two averages. ``every`` 0: nothing, gradients are summed as usual."""

    def __init__(self, world: World, parameters: nn.Parameters, optimizer: nn.optim.Optimizer, every: int) -> None:
        self._world, self._parameters, self._optimizer, self.every = world, parameters, optimizer, every
        self._updates = self._bad = self._bad_rounds = 0

    @property
    def active(self) -> bool:
        """Whether ranks update their weights on their own."""
        return self.every > 0

    @property
    def meeting(self) -> bool:
        """Whether all ranks have the same weights just now: only then they poll and save."""
        return self._updates == 0

    def divisors(self, criterion: nn.Loss, batch: Batch) -> NDArray[np.float64]:
        """What the loss of this rank's own samples is divided by."""
        return criterion.denominators(batch.labels)

    def update(self, norm: float, images: int) -> bool:
        """Counts an update; whether the gradient can be used: it is finite, and there were images."""
        self._updates += 1
        if not math.isfinite(norm):
            self._bad += 1
            return False
        return images > 0

    def average(self, *, now: bool = False) -> bool:
        """After ``every`` updates, or now: the weights become the mean over ranks. Collective; whether it was done.

        Failure (exit 4) when some rank has had no finite gradient in three rounds in a row.
        """
        if not self.active or not (self._updates >= self.every or (now and self._updates)):
            return False
        useless = self._world.any(self._bad == self._updates, "compare gradients")
        self._bad_rounds = self._bad_rounds + 1 if useless else 0
        if self._bad_rounds >= IN_A_ROW:
            raise Failure(
                f"diverged: a rank has had no finite gradient in {IN_A_ROW} rounds of {self._updates} updates; "
                "try a lower --lr or --clip-norm",
                DIVERGED,
            )
        for array in (self._parameters.value, *(getattr(self._optimizer, slot) for slot in self._optimizer.slots)):
            host = to_host(array)  # itself, or a copy of what a device has
            self._world.sum(host, "average of the weights")
            host /= self._world.size
            if host is not array:
                array[...] = host
        # an update that one rank has left out must not leave the ranks at different steps of Adam's corrections
        self._optimizer.steps = max(self._world.allgather(self._optimizer.steps, "compare updates"))
        self._updates = self._bad = 0
        return True
