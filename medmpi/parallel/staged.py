"""Sums over ranks of gradients in the memory of devices: through host memory, where the ranks of a node share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..kernels.arrays import Array, to_host
from .buckets import FlatGradients, GradientBuckets, NamedNode

if TYPE_CHECKING:
    from .world import World


@dataclass
class _Host:
    """The gradients in host memory, as ``GradientBuckets`` wants them."""

    slices: dict[str, slice]
    grad: Array


class StagedGradients:
    """As ``GradientBuckets``, for a ``parameters.grad`` on a device: copied to the host, summed, copied back.

    The sums are those of host gradients, in rank order, the same bits on all ranks. A rank that is alone copies
    nothing.
    """

    def __init__(self, parameters: FlatGradients, world: World, *, wire: str = "fp32") -> None:
        self._grad: Any = parameters.grad
        self._alone = world.size == 1
        self._nodes: list[NamedNode] = []
        if not self._alone:
            self._host = _Host(parameters.slices, world.allocate(self._grad.size))
            self._buckets = GradientBuckets(self._host, world, wire=wire)

    def done(self, node: NamedNode) -> None:
        """The hook of ``Graph.backward``: the device has been given the work that completes the node's gradients."""
        if not self._alone:
            self._nodes.append(node)

    def finish(self) -> None:
        """Waits until the sums are complete on all ranks. Collective."""
        if self._alone:
            return
        to_host(self._grad, out=self._host.grad)
        for node in self._nodes:
            self._buckets.done(node)
        self._nodes.clear()
        self._buckets.finish()
        self._grad[...] = self._host.grad
