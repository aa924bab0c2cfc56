"""What each node of a graph costs: seconds forward and backward, bytes of parameters and of what backward keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..kernels.arrays import Array, empty
from .graph import Graph, Node
from .layer import Context, Shape
from .parameters import Parameters


@dataclass(frozen=True)
class NodeCost:
    """One node's cost for the batch that was measured."""

    name: str
    forward: float  # seconds
    backward: float
    parameter_bytes: int
    output_bytes: int
    saved_bytes: int  # of arrays that backward keeps beside inputs and result

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def measure(graph: Graph, *shapes: Shape, rounds: int = 3, budget: float = 20.0) -> list[NodeCost]:
    """Runs every node alone on random inputs of the sizes that inputs of these ``shapes`` give; best of ``rounds``.

    Only one node's parameters and values are in memory at a time, so a model that fits no single rank can be measured.
    After ``budget`` seconds the rest is measured once. The graph's own parameters are not touched.
    """
    sizes = graph.shapes(*shapes)
    needed = graph.plan().needs_gradient([False] * graph.n_inputs)
    rng = np.random.default_rng(0)
    end = time.perf_counter() + budget
    return [
        _measure(node, [sizes[v] for v in node.inputs], [needed[v] for v in node.inputs], rng, rounds, end)
        for node in graph.nodes
    ]


def _measure(
    node: Node, shapes: Sequence[Shape], needed: Sequence[bool], rng: np.random.Generator, rounds: int, end: float
) -> NodeCost:
    alone = Graph(len(shapes))
    layer = node.layer
    kept = [dict(table) for table in (layer.p, layer.g, layer.b)]
    exact, layer.exact = layer.exact, None
    layer.b.update({name: value.copy() for name, value in layer.b.items()})
    alone.nodes.append(Node(node.name, layer, tuple(range(len(shapes)))))
    alone.outputs = (len(shapes),)
    alone.wanted = tuple(needed)  # a frozen layer keeps what passes gradients on, where they are passed on
    try:
        parameters = Parameters(alone)
        xs = [_random(rng, shape) for shape in shapes]
        forward = backward = float("inf")
        saved_bytes = output_bytes = 0
        for turn in range(rounds):
            if turn and time.perf_counter() > end:
                break
            start = time.perf_counter()
            (y,), saved = alone.forward(*xs, context=Context())
            middle = time.perf_counter()
            output_bytes = y.nbytes
            saved_bytes = _bytes(saved, [*xs, y])
            alone.backward((y,), saved, input_gradients=list(needed))
            stop = time.perf_counter()
            forward, backward = min(forward, middle - start), min(backward, stop - middle)
            del y, saved
        return NodeCost(node.name, forward, backward, parameters.value.nbytes, output_bytes, saved_bytes)
    finally:
        layer.exact = exact
        for table, old in zip((layer.p, layer.g, layer.b), kept, strict=True):
            table.clear()
            table.update(old)


def _random(rng: np.random.Generator, shape: Shape) -> Array:
    """Numbers around 0, the same block again and again: drawing them all would take longer than the layers."""
    block = rng.standard_normal(1 << 14, np.float32)
    x: Array = empty(shape)
    x.reshape(-1)[...] = np.resize(block, prod(shape))
    return x


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays(item)


def _bytes(saved: Any, others: Sequence[Array]) -> int:
    """Bytes of different arrays in ``saved`` that are none of ``others``."""
    found: dict[int, int] = {}
    for array in _arrays(saved):
        if not any(np.may_share_memory(array, x) for x in others):
            address = array.__array_interface__["data"][0]
            found[address] = max(found.get(address, 0), array.nbytes)
    return sum(found.values())
