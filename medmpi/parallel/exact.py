"""Sums gradients over ranks so that they do not depend on the number of ranks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .buckets import NamedNode
from .world import World


class ExactGradients(Protocol):
    """What is needed of ``nn.ExactGradients``."""

    total: NDArray[np.float64]

    def round(self) -> None:
        """The sums become the gradients."""
        ...


class ExactSums:
    """Stands in for ``GradientBuckets`` where gradients are exact: one float64 sum at the end of backward."""

    def __init__(self, gradients: ExactGradients, world: World) -> None:
        self._gradients, self._world = gradients, world

    def done(self, node: NamedNode) -> None:
        """Nothing is sent before the end."""

    def finish(self) -> None:
        """Sums over ranks and rounds to ``parameters.grad``. Collective."""
        self._world.sum(self._gradients.total, "sum of gradients")
        self._gradients.round()
