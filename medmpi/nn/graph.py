"""A model: layers wired into a directed acyclic graph, run forward and backward without a tape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from ..kernels.arrays import Array
from .layer import Context, Layer, Shape
from .passes import BackwardPass, ForwardPass
from .plan import Plan


@dataclass(frozen=True)
class Node:
    """A layer, the name it goes by (torch's module path) and the numbers of the values it reads."""

    name: str
    layer: Layer
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class NodeInfo:
    """One line of a summary."""

    name: str
    layer: Layer
    shape: Shape
    parameters: int
    macs: int


def _ignore(node: Node) -> None:
    pass


class Graph:
    """Nodes in topological order. Values 0..n_inputs-1 come in; node i makes value n_inputs + i.

    The last node added is the output unless ``outputs`` is set. Activations are (N, H, W, C) or (N, C), float32.
    """

    def __init__(self, n_inputs: int = 1) -> None:
        self.nodes: list[Node] = []
        self.n_inputs = n_inputs
        self.wanted: tuple[bool, ...] = (False,) * n_inputs
        self.frozen: tuple[bool, ...] = (False,) * n_inputs
        self._outputs: tuple[int, ...] = tuple(range(n_inputs))
        self._plan: Plan | None = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """The values that ``forward`` returns."""
        return self._outputs

    @outputs.setter
    def outputs(self, values: Sequence[int]) -> None:
        for value in values:
            self._check(value, "outputs")
        self._outputs, self._plan = tuple(values), None

    def _check(self, value: int, name: str) -> None:
        made = self.n_inputs + len(self.nodes)
        if not 0 <= value < made:
            raise ValueError(f"Graph: {name} reads value {value}, expected one of the {made} made before it")

    def add(self, name: str, layer: Layer, *inputs: int) -> int:
        """Appends a node that reads the values ``inputs`` (none given: the last one made); returns its value."""
        if not inputs:
            inputs = (self.n_inputs + len(self.nodes) - 1,)
        for value in inputs:
            self._check(value, name)
        if any(node.name == name for node in self.nodes):
            raise ValueError(f"Graph: {name} is there already, expected a new name")
        if any(node.layer is layer for node in self.nodes):
            raise ValueError(f"Graph: layer of {name} is in another node already, expected a layer of its own")
        layer.name = name
        self.nodes.append(Node(name, layer, inputs))
        self._outputs, self._plan = (self.n_inputs + len(self.nodes) - 1,), None
        return self._outputs[0]

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Layer:
        for node in self.nodes:
            if node.name == name:
                return node.layer
        raise KeyError(name)

    def plan(self) -> Plan:
        """What depends on the wiring alone: when values die, which memory may be used again, who needs gradients."""
        if self._plan is None:
            inputs = [node.inputs for node in self.nodes]
            self._plan = Plan.of([node.layer for node in self.nodes], inputs, self.outputs, self.wanted, self.frozen)
        return self._plan

    def forward(self, *xs: Array, context: Context | None = None) -> tuple[tuple[Array, ...], list[Any]]:
        """The outputs, and what ``backward`` needs (nothing but None unless ``context.train`` or ``context.keep``).

        Values that nobody will read again are dropped at once. The inputs are never written to. Nodes that no gradient
        reaches because what is behind them is frozen work as in inference and keep nothing.
        """
        run = ForwardPass(self, xs, context or Context())
        run.run(len(self.nodes))
        return run.outputs(), run.saved

    def backward(
        self,
        dys: Sequence[Array | None],
        saved: list[Any],
        *,
        done: Callable[[Node], None] = _ignore,
        input_gradients: bool | Sequence[bool] = False,
    ) -> tuple[Array, ...]:
        """Adds to the parameters' gradients; returns those of the inputs asked for (all, none, or by flags).

        ``done(node)`` is called when a node's parameter gradients are complete, last node first. A value read by
        several nodes gets the sum of their gradients in the order of ``nodes`` reversed. ``saved`` is used up.
        ``dys`` are not written to; None stands for an output that has no gradient.
        """
        run = self.start_backward(dys, saved, done=done, input_gradients=input_gradients)
        run.run(0)
        return run.input_gradients()

    def start_forward(self, *xs: Array, context: Context) -> ForwardPass:
        """A forward pass that has not begun, for micro-batches that advance together."""
        return ForwardPass(self, xs, context)

    def start_backward(
        self,
        dys: Sequence[Array | None],
        saved: list[Any],
        *,
        done: Callable[[Node], None] = _ignore,
        input_gradients: bool | Sequence[bool] = False,
    ) -> BackwardPass:
        """A backward pass that has not begun; arguments as for ``backward``."""
        flags = [input_gradients] * self.n_inputs if isinstance(input_gradients, bool) else list(input_gradients)
        return BackwardPass(self, dys, saved, flags, done)

    def meetings(self, context: Context) -> list[int]:
        """The nodes in which the micro-batches of a batch must meet, with this context."""
        settled = self.plan().settled
        return [i for i, node in enumerate(self.nodes) if node.layer.meets(context) and not settled[i]]

    def freeze(self, names: Collection[str]) -> None:
        """Freezes the layers of the nodes ``names``; build ``Parameters`` afterwards. KeyError for an unknown name."""
        for name in names:
            self[name].frozen = True
        self._plan = None

    def split(self, cuts: Sequence[int]) -> list[Graph]:
        """Consecutive stages, cut before the nodes ``cuts``. Values alive at a cut leave one stage and enter the next.

        The stages share this graph's layers; run one after another they compute exactly what it does. A value that
        skips a stage enters and leaves it. ``wanted`` of each stage says which of its inputs need gradients, ``frozen``
        which of them frozen layers lie behind.
        """
        edges = [0, *cuts, len(self.nodes)]
        if any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"Graph.split: cuts are {list(cuts)}, expected rising from 1 to {len(self.nodes) - 1}")
        plan = self.plan()
        needed = plan.needs_gradient(self.wanted)
        stages = []
        for a, b in pairwise(edges):
            ins = self.live(a) if a else list(range(self.n_inputs))
            rename = {v: i for i, v in enumerate([*ins, *range(self.n_inputs + a, self.n_inputs + b)])}
            stage = Graph(len(ins))
            stage.wanted, stage.frozen = tuple(needed[v] for v in ins), tuple(plan.frozen[v] for v in ins)
            for node in self.nodes[a:b]:
                stage.nodes.append(Node(node.name, node.layer, tuple(rename[v] for v in node.inputs)))
            leaving = self.live(b) if b < len(self.nodes) else self.outputs
            stage.outputs = tuple(rename[v] for v in leaving)
            stages.append(stage)
        return stages

    def live(self, cut: int) -> list[int]:
        """The values made before node ``cut`` that it or a later one reads, or that are outputs."""
        read = {v for node in self.nodes[cut:] for v in node.inputs} | set(self.outputs)
        return [v for v in range(self.n_inputs + cut) if v in read]

    def fuse(self) -> Graph:
        """This graph with batch normalisation (+ addition) + ReLU and convolution + ReLU as single nodes.

        Parameters, which the layers share, and their names stay. Build ``Parameters`` after fusing: the order of nodes
        may change.
        """
        from .fuse import fuse

        return fuse(self)

    def unfuse(self) -> Graph:
        """This graph with a node for each operation: the same network in more passes over memory, to compare."""
        from .fuse import unfuse

        return unfuse(self)

    def fold(self) -> Graph:
        """A copy for inference alone, with batch normalisation folded into the convolutions before it.

        Its weights are those of now. ``nn.tune`` then chooses the fastest algorithm for a batch's shape.
        """
        from .fold import fold

        return fold(self)

    def shapes(self, *inputs: Shape) -> list[Shape]:
        """The shape of every value for inputs of these shapes; ValueError naming the layer that does not fit."""
        if len(inputs) != self.n_inputs:
            raise ValueError(f"Graph.shapes: {len(inputs)} shapes, expected {self.n_inputs}")
        shapes: list[Shape] = [tuple(shape) for shape in inputs]
        for node in self.nodes:
            shapes.append(node.layer.output_shape(*(shapes[v] for v in node.inputs)))
        return shapes

    def output_shape(self, *inputs: Shape) -> Shape:
        """The shape of the (first) output for inputs of these shapes; ValueError where an image is too small."""
        return self.shapes(*inputs)[self.outputs[0]]

    def describe(self, *inputs: Shape) -> list[NodeInfo]:
        """Shape, parameters and multiply-adds of each node."""
        shapes = self.shapes(*inputs)
        return [
            NodeInfo(
                node.name,
                node.layer,
                shapes[self.n_inputs + i],
                sum(prod(spec.shape) for spec in node.layer.parameter_specs().values()),
                node.layer.macs(*(shapes[v] for v in node.inputs)),
            )
            for i, node in enumerate(self.nodes)
        ]

    def macs(self, *inputs: Shape) -> int:
        """Multiply-adds of one forward pass."""
        return sum(info.macs for info in self.describe(*inputs))

    def summary(self, *inputs: Shape) -> str:
        """A table of the nodes: name, layer, output shape, parameters, multiply-adds."""
        infos = self.describe(*inputs)
        rows = [("node", "layer", "output", "parameters", "MACs")]
        for info in infos:
            size = "x".join(map(str, info.shape))
            rows.append((info.name, repr(info.layer), size, f"{info.parameters:,}", f"{info.macs:,}"))
        total = sum(i.parameters for i in infos), sum(i.macs for i in infos)
        rows.append(("total", "", "", f"{total[0]:,}", f"{total[1]:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        left = 3  # columns of text, then of numbers
        lines = []
        for row in rows:
            texts = [t.ljust(w) for t, w in zip(row[:left], widths[:left], strict=True)]
            texts += [t.rjust(w) for t, w in zip(row[left:], widths[left:], strict=True)]
            lines.append("  ".join(texts))
        return "\n".join(lines)
