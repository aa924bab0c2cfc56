"""All parameters of a graph in one flat array, last node first: the order in which backward fills their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .exact import ExactGradients
from .graph import Graph
from .initialise import generator

Real = TypeVar("Real", bound=np.floating)  # numpy's own number types
_ALIGN = 16  # floats: every parameter starts on a cache line


class Parameters:
    """``value`` and ``grad`` are flat, on the host or on a ``device``; each layer's ``p`` and ``g`` are views of them.

    ``slices`` maps a node's name to its part of both; the parts follow each other without gaps, from the last node to
    the first, so that a run of finished gradients is one slice. Elements between parameters (for alignment) stay 0.
    ``allocate(n)`` makes the gradient's float32 array, which lets gradients live in memory shared with other ranks.
    With ``device`` "cuda" the layers' running statistics move there too, as views of the flat ``running``, and the
    graph computes on device arrays.

    The parameters of frozen layers lie in ``fixed``, have no gradients and are not counted or named here: nothing that
    optimizes, reduces or saves the state of training meets them. Weights files hold them (``nn.checkpoint``).
    """

    def __init__(
        self,
        graph: Graph,
        *,
        seed: int = 0,
        allocate: Callable[[int], Array] | None = None,
        device: str = "cpu",
    ) -> None:
        self.graph, self.device = graph, device
        self.slices: dict[str, slice] = {}
        self._views: dict[str, tuple[int, tuple[int, ...]]] = {}  # parameter name -> offset, shape
        end = frozen = 0
        fixed: dict[str, slice] = {}
        for node in reversed(graph.nodes):
            start = end
            if node.layer.frozen:
                for name, spec in node.layer.parameter_specs().items():
                    fixed[f"{node.name}.{name}"] = slice(frozen, frozen + prod(spec.shape))
                    frozen += -(-prod(spec.shape) // _ALIGN) * _ALIGN
                continue
            for name, spec in node.layer.parameter_specs().items():
                self._views[f"{node.name}.{name}"] = end, spec.shape
                end += -(-prod(spec.shape) // _ALIGN) * _ALIGN
            self.slices[node.name] = slice(start, end)
        self.exact: ExactGradients | None = None
        self.value: Array = self._allocate(end)
        self.grad: Array = (allocate or self._allocate)(end)
        if self.grad.shape != (end,) or self.grad.dtype != self.value.dtype:
            raise ValueError(
                f"Parameters: allocate gave {self.grad.dtype} {self.grad.shape}, expected float32 ({end},)"
            )
        self.fixed: Array = self._allocate(frozen)
        for array in (self.value, self.grad, self.fixed):
            array[...] = 0
        for node in graph.nodes:
            layer = node.layer
            specs = layer.parameter_specs()
            layer.p.clear()  # the dictionaries stay: a fused node shares them
            layer.g.clear()
            if layer.frozen:
                parts = ((name, fixed[f"{node.name}.{name}"]) for name in specs)
                layer.p.update((name, self.fixed[part].reshape(specs[name].shape)) for name, part in parts)
                continue
            layer.g.update((name, self.view(self.grad, f"{node.name}.{name}")) for name in specs)
        self.move(lambda value: value)
        self.running: Array | None = None
        if device != "cpu":
            self._move_buffers()
        self.initialise(seed)

    def _allocate(self, n: int) -> Array:
        return K.empty((n,), device=self.device)

    def _move_buffers(self) -> None:
        """Running statistics to the device; counters stay, Python reads them."""
        tables = [node.layer.b for node in self.graph.nodes]
        found = [(table, name, value) for table in tables for name, value in table.items() if value.dtype.kind == "f"]
        ends = np.cumsum([0, *(-(-value.size // _ALIGN) * _ALIGN for _, _, value in found)])
        self.running = self._allocate(int(ends[-1]))
        K.fill_(self.running)
        for (table, name, value), start in zip(found, ends, strict=False):
            table[name] = self.running[start : start + value.size].reshape(value.shape)
            table[name][...] = K.to_host(value)

    def move(self, place: Callable[[Array], Array]) -> None:
        """``value`` becomes what ``place`` makes of it: an array of the same size elsewhere; layers use that then."""
        self.value = place(self.value)
        for node in self.graph.nodes:
            if not node.layer.frozen:
                names = node.layer.parameter_specs()
                node.layer.p.update((name, self.view(self.value, f"{node.name}.{name}")) for name in names)

    def initialise(self, seed: int) -> None:
        """Draws every parameter anew, frozen ones too; each depends on ``seed`` and its own name alone."""
        for node in self.graph.nodes:
            for name, spec in node.layer.parameter_specs().items():
                draw = node.layer.init.get(name, spec.initialise)
                rng = generator(seed, f"{node.name}.{name}")
                node.layer.p[name][...] = np.ascontiguousarray(draw(rng, spec.shape, spec.fan_in, spec.fan_out))

    def __len__(self) -> int:
        """The number of parameters that are trained, alignment not counted."""
        return sum(prod(shape) for _, shape in self._views.values())

    def names(self) -> list[str]:
        """Names of all parameters, first node first."""
        nodes = [node for node in self.graph.nodes if not node.layer.frozen]
        return [f"{node.name}.{name}" for node in nodes for name in node.layer.parameter_specs()]

    def view(self, flat: NDArray[Real], name: str) -> NDArray[Real]:
        """The part of ``flat`` (value, grad, or an optimizer's array like them) that belongs to one parameter."""
        at, shape = self._views[name]
        return flat[at : at + prod(shape)].reshape(shape)

    def named(self) -> Iterator[tuple[str, Array]]:
        """Name and value of each parameter, first node first."""
        for name in self.names():
            yield name, self.view(self.value, name)

    def named_gradients(self) -> Iterator[tuple[str, Array]]:
        """Name and gradient of each parameter, first node first."""
        for name in self.names():
            yield name, self.view(self.grad, name)

    def zero_grad(self) -> None:
        """Sets all gradients to 0; backward adds to them."""
        K.fill_(self.grad)
        if self.exact is not None:
            self.exact.clear()
