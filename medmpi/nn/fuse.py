"""Turns batch normalisation (+ addition) + ReLU and convolution + ReLU into single nodes, and back: fewer passes over
memory."""

from __future__ import annotations

from .graph import Graph, Node
from .layer import Layer
from .layers_conv import Conv2d
from .layers_norm import BatchNorm2d
from .layers_pointwise import Add, ReLU


def _with(layer: BatchNorm2d, *, relu: bool, residual: bool) -> BatchNorm2d:
    """The same layer (parameters and buffers shared) with other options."""
    fused = BatchNorm2d(
        layer.channels, eps=layer.eps, momentum=layer.momentum, relu=relu, residual=residual, init=layer.init
    )
    fused.name, fused.p, fused.g, fused.b, fused.frozen = layer.name, layer.p, layer.g, layer.b, layer.frozen
    return fused


def _with_relu(layer: Conv2d, relu: bool = True) -> Conv2d:
    """The same convolution (parameters shared), followed by a ReLU or not."""
    fused = Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation, groups=layer.groups, bias=layer.bias, relu=relu, init=layer.init,
    )  # fmt: skip
    fused.name, fused.p, fused.g, fused.b, fused.frozen = layer.name, layer.p, layer.g, layer.b, layer.frozen
    return fused


def fuse(graph: Graph) -> Graph:
    """See ``Graph.fuse``. A chain is fused where nobody else reads its inner values.

    The fused node stands where the chain's last one stood: a residual may be computed after the normalisation.
    """
    first = graph.n_inputs
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for v in node.inputs:
            readers.setdefault(v, []).append(i)

    def follower(value: int) -> int | None:
        """The only node that reads ``value``, once, if there is one."""
        nodes = readers.get(value, [])
        return nodes[0] if len(nodes) == 1 and value not in graph.outputs else None

    gone: set[int] = set()  # nodes that became part of a later one
    replaced: dict[int, Node] = {}  # where the chain ended
    for i, node in enumerate(graph.nodes):
        layer = node.layer
        if isinstance(layer, Conv2d) and not layer.relu:
            after = follower(first + i)
            if after is not None and isinstance(graph.nodes[after].layer, ReLU):
                gone.add(i)
                replaced[after] = Node(node.name, _with_relu(layer), node.inputs)
            continue
        if not isinstance(layer, BatchNorm2d) or layer.relu or layer.residual:
            continue
        chain, inputs, relu = [i], node.inputs, False
        after = follower(first + i)
        if after is not None and after not in replaced:
            add = graph.nodes[after]
            if isinstance(add.layer, Add) and len(add.inputs) == 2:
                other = add.inputs[1] if add.inputs[0] == first + i else add.inputs[0]
                chain, inputs = [*chain, after], (*inputs, other)
                after = follower(first + after)
        if after is not None and isinstance(graph.nodes[after].layer, ReLU):
            chain, relu = [*chain, after], True
        if len(chain) > 1:
            gone.update(chain[:-1])
            residual = len(inputs) == 2
            replaced[chain[-1]] = Node(node.name, _with(layer, relu=relu, residual=residual), inputs)
            # an addition inside a longer chain must not be fused again from its other side
            replaced.update(dict.fromkeys(chain[1:-1], replaced[chain[-1]]))

    fused = Graph(first)
    value = {v: v for v in range(first)}
    for i, node in enumerate(graph.nodes):
        if i in gone:
            continue
        node = replaced.get(i, node)
        value[first + i] = first + len(fused.nodes)
        fused.nodes.append(Node(node.name, node.layer, tuple(value[v] for v in node.inputs)))
    fused.outputs = tuple(value[v] for v in graph.outputs)
    _find_normalised(fused)
    return fused


def unfuse(graph: Graph) -> Graph:
    """See ``Graph.unfuse``."""
    plain = Graph(graph.n_inputs)
    value = {v: v for v in range(graph.n_inputs)}
    for i, node in enumerate(graph.nodes):
        layer, inputs = node.layer, tuple(value[v] for v in node.inputs)
        after: list[tuple[str, Layer, tuple[int, ...]]] = []  # what the node did besides
        if isinstance(layer, BatchNorm2d) and (layer.relu or layer.residual):
            if layer.residual:
                after.append(("add", Add(), inputs[1:]))
            if layer.relu:
                after.append(("relu", ReLU(), ()))
            layer, inputs = _with(layer, relu=False, residual=False), inputs[:1]
        elif isinstance(layer, Conv2d) and layer.relu:
            after, layer = [("relu", ReLU(), ())], _with_relu(layer, relu=False)
        plain.nodes.append(Node(node.name, layer, inputs))
        for suffix, other, more in after:
            last = plain.n_inputs + len(plain.nodes) - 1
            other.name = f"{node.name}.{suffix}"
            plain.nodes.append(Node(other.name, other, (last, *more)))
        if isinstance(layer, Conv2d):
            layer.normalised = False
        value[graph.n_inputs + i] = plain.n_inputs + len(plain.nodes) - 1
    plain.outputs = tuple(value[v] for v in graph.outputs)
    return plain


def _find_normalised(graph: Graph) -> None:
    """Tells convolutions whose result one batch normalisation alone reads that it will want the moments."""
    reads = [v for node in graph.nodes for v in node.inputs]
    for node in graph.nodes:
        value = node.inputs[0] - graph.n_inputs
        if isinstance(node.layer, BatchNorm2d) and value >= 0 and not node.layer.frozen:
            conv = graph.nodes[value].layer
            if isinstance(conv, Conv2d):
                conv.normalised = reads.count(node.inputs[0]) == 1 and node.inputs[0] not in graph.outputs
