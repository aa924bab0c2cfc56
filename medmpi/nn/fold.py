"""A trained graph for inference: batch normalisation becomes part of the convolutions before it (Jacob et al. 2018).

With running statistics, ``(conv(x) - mean) / sqrt(var + eps) * gamma + beta`` is a convolution with other weights and a
bias; a ReLU and a residual that follow go into the same call. The result is a graph of its own: it does not follow
later changes of the weights, and has no gradients.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import kernels as K
from ..kernels.arrays import Array
from .graph import Graph, Node
from .layer import Context, Layer, Shape
from .layers_conv import Conv2d
from .layers_norm import BatchNorm2d

_ROUNDS = 10  # of timing an algorithm
_SECONDS = 0.1  # after which two of them will do


class FoldedConv2d(Layer):
    """A convolution with fixed weights; adds a second input where ``residual``, clips where ``relu``."""

    def __init__(self, conv: Conv2d, norm: BatchNorm2d | None) -> None:
        super().__init__()
        self.conv = conv
        self.relu = norm.relu if norm is not None else conv.relu
        self.residual = norm is not None and norm.residual
        self.algo, self.cache = "auto", K.WeightCache()
        self.weight, self.bias = _folded(conv, norm)

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        if context.train:
            raise ValueError(f"{self.name}: a folded graph is for inference, expected Context(train=False)")
        residual = xs[1] if self.residual else None
        y = K.conv2d(
            xs[0],
            self.weight,
            self.bias,
            residual=residual,
            relu=self.relu,
            algo=self.algo,
            cache=self.cache,
            **self.conv.window,
        )
        return y, None

    def move(self, place: Callable[[Array], Array]) -> None:
        self.weight, self.bias = place(self.weight), None if self.bias is None else place(self.bias)

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.conv.output_shape(shapes[0])

    def macs(self, *shapes: Shape) -> int:
        return self.conv.macs(shapes[0])

    def describe(self) -> str:
        text = Conv2d.describe(self.conv).removesuffix(", relu")
        return text + ", + residual" * self.residual + ", relu" * self.relu


def _folded(conv: Conv2d, norm: BatchNorm2d | None) -> tuple[Array, Array | None]:
    """Weights and bias, computed in float64."""
    weight, bias = conv.p["weight"], conv.p.get("bias")
    if norm is None:
        return weight.copy(), None if bias is None else bias.copy()
    scale = norm.p["weight"] / np.sqrt(norm.b["running_var"].astype(np.float64) + norm.eps)
    shift = norm.p["bias"] - scale * norm.b["running_mean"]
    if bias is not None:
        shift = shift + scale * bias
    return np.ascontiguousarray(weight * scale, np.float32), np.ascontiguousarray(shift, np.float32)


def fold(graph: Graph) -> Graph:
    """See ``Graph.fold``."""
    first = graph.n_inputs
    fused = graph.fuse()
    readers: dict[int, int] = {}
    for node in fused.nodes:
        for v in node.inputs:
            readers[v] = readers.get(v, 0) + 1
    folded = Graph(first)
    value = {v: v for v in range(first)}
    held: dict[int, Node] = {}  # convolutions that wait for their normalisation, by the value they make
    for i, node in enumerate(fused.nodes):
        v, layer = first + i, node.layer
        if isinstance(layer, Conv2d):
            norm = _only_reader(fused, v, readers)
            if norm is not None and not layer.relu:
                held[v] = node
                continue
            node = Node(node.name, FoldedConv2d(layer, None), node.inputs)
        elif isinstance(layer, BatchNorm2d) and node.inputs[0] in held:
            conv = held.pop(node.inputs[0])
            assert isinstance(conv.layer, Conv2d)
            node = Node(conv.name, FoldedConv2d(conv.layer, layer), (*conv.inputs, *node.inputs[1:]))
        else:
            node = Node(node.name, _copy(layer), node.inputs)
        node.layer.name = node.name
        value[v] = first + len(folded.nodes)
        folded.nodes.append(Node(node.name, node.layer, tuple(value[u] for u in node.inputs)))
    folded.outputs = tuple(value[v] for v in fused.outputs)
    return folded


def _copy(layer: Layer) -> Layer:
    """The layer with weights and buffers of its own, and no gradients."""
    other = copy.copy(layer)
    other.p = {name: value.copy() for name, value in layer.p.items()}
    other.b = {name: value.copy() for name, value in layer.b.items()}
    other.g = {}
    return other


def _only_reader(graph: Graph, value: int, readers: dict[int, int]) -> BatchNorm2d | None:
    """The normalisation that alone reads a value, as its first input."""
    if readers.get(value) != 1 or value in graph.outputs:
        return None
    for node in graph.nodes:
        if value in node.inputs:
            return node.layer if isinstance(node.layer, BatchNorm2d) and node.inputs[0] == value else None
    return None


def tune(graph: Graph, *shapes: Shape) -> dict[str, str]:
    """Sets the faster algorithm for each convolution of a folded graph at these input shapes, by timing both.

    Returns name -> algorithm of those that had a choice. Small batches read more weights than pixels, for which
    Winograd's larger ones do not pay; arithmetic does not tell where that begins.
    """
    chosen = {}
    sizes = graph.shapes(*shapes)
    for node in graph.nodes:
        layer = node.layer
        if isinstance(layer, FoldedConv2d) and layer.conv.kernel_size in ((3, 3), (5, 5)) and layer.conv.groups == 1:
            xs = [K.empty(sizes[v]) for v in node.inputs]
            for x in xs:
                x.fill(0)
            layer.algo = chosen[node.name] = _faster(layer, xs)
    return chosen


def _faster(layer: FoldedConv2d, xs: Sequence[Array]) -> str:
    """Times the algorithms in turn, so that a disturbance hits both; small differences are none."""
    caches = {algo: K.WeightCache() for algo in ("auto", "direct")}
    best = dict.fromkeys(caches, float("inf"))
    context = Context(train=False)
    begin = time.perf_counter()
    for turn in range(_ROUNDS):
        if turn >= 2 and time.perf_counter() - begin > _SECONDS:
            break
        for algo, cache in caches.items():
            layer.algo, layer.cache = algo, cache
            start = time.perf_counter()
            layer.forward(*xs, context=context)
            best[algo] = min(best[algo], time.perf_counter() - start)
    algo = "direct" if best["direct"] < 0.95 * best["auto"] else "auto"
    layer.cache = caches[algo]
    return algo
