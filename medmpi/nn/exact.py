"""Sums of gradients that do not depend on how a batch is shared out over ranks.

A float32 sum depends on its order, so N ranks and one rank get gradients that differ in the last digits; once one of
them switches a ReLU, the runs drift apart. Here the gradients of a few consecutive samples (a part; its place in the
global batch is the same on any number of ranks) are computed in float32, and the parts are added in float64. A sum of
float32 numbers is exact there as long as they span less than a factor of 2^29, so its order makes no difference, and
what an unusually wide span leaves vanishes when the sum is rounded to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .parameters import Parameters

Array64 = NDArray[np.float64]


@dataclass
class Totals:
    """Where one layer adds its gradients."""

    samples: int
    totals: dict[str, Array64]

    def parts(self, n: int) -> Iterator[slice]:
        """The parts of this rank's ``n`` samples, of which the first one begins a part."""
        for first in range(0, n, self.samples):
            yield slice(first, min(first + self.samples, n))


class ExactGradients:
    """The float64 sums of all gradients of ``parameters``, whose layers add to them from now on.

    ``samples`` is the size of a part. Every rank's share of a batch must begin at a multiple of it. After backward, and
    after ``total`` has been summed over ranks, ``round`` writes the result to ``parameters.grad``.
    """

    def __init__(self, parameters: Parameters, samples: int) -> None:
        if samples < 1:
            raise ValueError(f"ExactGradients: samples is {samples}, expected 1 or more")
        self.samples = samples
        self.total: Array64 = np.zeros(parameters.grad.size)
        self._grad = parameters.grad
        for node in parameters.graph.nodes:
            names = node.layer.parameter_specs()
            if names and not node.layer.frozen:
                views = {name: parameters.view(self.total, f"{node.name}.{name}") for name in names}
                node.layer.exact = Totals(samples, views)
        parameters.exact = self

    def clear(self) -> None:
        """Sets all sums to 0."""
        self.total.fill(0.0)

    def round(self) -> None:
        """The sums, rounded once, become the gradients."""
        np.copyto(self._grad, self.total, casting="same_kind")
