"""A pass through a graph that can stop between nodes, so that micro-batches of one batch can meet in a layer.

Batch normalisation over the whole batch needs all micro-batches before any of them goes on. ``ForwardPass`` and
``BackwardPass`` run up to such a node; the layer's ``forward_meet`` or ``backward_meet`` then joins what all of them
bring, and each goes on with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import kernels as K
from ..kernels.arrays import Array, may_share_memory
from .layer import Context

if TYPE_CHECKING:
    from .graph import Graph, Node

_USED = object()


@contextmanager
def _named(node: Node) -> Iterator[None]:
    """Errors say in which node's backward pass they came."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in backward of {node.name}, {node.layer!r}")
        raise


class ForwardPass:
    """One batch on its way through ``graph``; values that nobody will read again are dropped at once."""

    def __init__(self, graph: Graph, xs: Sequence[Array], context: Context) -> None:
        if len(xs) != graph.n_inputs:
            raise ValueError(f"Graph.forward: {len(xs)} inputs, expected {graph.n_inputs}")
        self._graph, self._context, self._plan = graph, context, graph.plan()
        self._keep = context.train or context.keep
        self._overwrite = self._plan.overwrite_train if self._keep else self._plan.overwrite_infer
        self._inference = replace(context, train=False)
        self._values: list[Array | None] = [*xs, *[None] * len(graph.nodes)]
        self._joint: Any = None
        self.saved: list[Any] = []

    def run(self, stop: int) -> None:
        """Runs the nodes before ``stop`` that have not run yet."""
        graph, values, settled = self._graph, self._values, self._plan.settled
        for i in range(len(self.saved), stop):
            context = self._inference if settled[i] else self._context
            node = graph.nodes[i]
            ins = [values[v] for v in node.inputs]
            for v in self._plan.dies[i]:
                values[v] = None
            try:
                if self._joint is None:
                    y, kept = node.layer.forward(*ins, context=context, overwrite=self._overwrite[i])  # type: ignore[arg-type]
                else:
                    y, kept = node.layer.forward_after(ins, self._joint, context)  # type: ignore[arg-type]
                    self._joint = None
            except Exception as error:
                error.add_note(f"in forward of {node.name}, {node.layer!r}")
                raise
            del ins
            values[graph.n_inputs + i] = y
            self.saved.append(kept if self._keep and (context.keep or not settled[i]) else None)
            del y, kept

    def inputs(self) -> tuple[Array, ...]:
        """What the next node reads."""
        return tuple(self._values[v] for v in self._graph.nodes[len(self.saved)].inputs)  # type: ignore[misc]

    def join(self, joint: Any) -> None:
        """Gives the next node, which meets, what ``forward_meet`` made of all micro-batches."""
        self._joint = joint

    def outputs(self) -> tuple[Array, ...]:
        """The graph's outputs, after the last node."""
        return tuple(self._values[v] for v in self._graph.outputs)  # type: ignore[misc]


class BackwardPass:
    """The gradients of one batch on their way back. ``saved``, that of its forward pass, is used up.

    Where a layer needs the sums of all ranks, the gradients of the convolution behind it are computed between bringing
    this rank's part and waiting for the others': ranks that are now faster, now slower then rarely wait at all.

    ``dys`` are those of the outputs, None for an output that needs none; they are not written to. ``wanted`` says for
    which inputs ``input_gradients`` returns gradients.
    """

    def __init__(
        self,
        graph: Graph,
        dys: Sequence[Array | None],
        saved: list[Any],
        wanted: Sequence[bool],
        done: Callable[[Node], None],
    ) -> None:
        if len(dys) != len(graph.outputs) or len(saved) != len(graph.nodes):
            raise ValueError(
                f"Graph.backward: {len(dys)} gradients and {len(saved)} saved values, expected {len(graph.outputs)} of"
                f" outputs and {len(graph.nodes)} of nodes"
            )
        self._graph, self._saved, self._wanted, self._done = graph, saved, wanted, done
        self._needed = graph.plan().needs_gradient(wanted)
        self._grads: dict[int, tuple[Array, bool]] = {}  # with whether nobody else holds the memory
        for v, dy in zip(graph.outputs, dys, strict=True):
            if dy is not None:
                grads = self._grads
                grads[v] = (K.add(grads[v][0], dy), True) if v in grads else (dy, False)
        self._left = len(graph.nodes)
        self._joint: Any = None
        self._late: tuple[Node, Callable[[], None]] | None = None  # whose parameters' gradients are to be added

    def run(self, stop: int) -> None:
        """Runs the nodes from ``stop`` on, last node first, that have not run yet."""
        while self._left > stop:
            self._left -= 1
            self._node(self._left, stop)
        self._settle()

    def _node(self, i: int, stop: int) -> None:
        graph, needed, grads = self._graph, self._needed, self._grads
        node = graph.nodes[i]
        kept, self._saved[i] = self._saved[i], _USED
        if kept is _USED:
            raise ValueError("Graph.backward: saved is used up, expected that of a new forward pass")
        value = graph.n_inputs + i
        if not needed[value] or value not in grads:
            grads.pop(value, None)
            self._done(node)
            return
        dy, own = grads.pop(value)
        need_dx = any(needed[v] for v in node.inputs)
        onto = self._onto(node)
        waits = need_dx and i > stop and graph.nodes[i - 1].layer.joins(self._saved[i - 1])
        late: Callable[[], None] | None = None
        with _named(node):
            if self._joint is not None:
                dxs = node.layer.backward_after(dy, kept, self._joint, own)
                self._joint = None
            elif node.layer.joins(kept):
                joint = node.layer.start_backward_meet([(dy, kept)])
                self._settle()
                dxs = node.layer.backward_after(dy, kept, joint(), own)
            elif waits or onto is not None:
                self._settle()
                dxs, late = node.layer.backward_inputs(dy, kept, own, onto)
            else:
                dxs = node.layer.backward(dy, kept, need_dx, own)
        del kept
        shares = [dx is not None and may_share_memory(dx, dy) for dx in dxs]
        for v, dx, shared in zip(node.inputs, dxs, shares, strict=True):
            if dx is not None and needed[v]:
                mine = not shared or (own and sum(shares) == 1)
                grads[v] = _sum(grads[v], (dx, mine)) if v in grads else (dx, mine)
        del dxs, dy
        if late is None:
            self._done(node)
            return
        self._late = node, late
        if not waits:
            self._settle()

    def _onto(self, node: Node) -> tuple[Array, bool] | None:
        """Takes the gradient that other readers of the node's input have brought, if the layer can add its own to it.

        It does so whether the memory may be overwritten or not: sums are the same wherever a graph is cut.
        """
        v = node.inputs[0]
        if self._joint is None and node.layer.adds_onto and len(node.inputs) == 1 and self._needed[v]:
            return self._grads.pop(v, None)
        return None

    def _settle(self) -> None:
        """Does what was left for later."""
        if self._late is None:
            return
        (node, add), self._late = self._late, None
        with _named(node):
            add()
        self._done(node)

    def arriving(self) -> tuple[Array, Any] | None:
        """Gradient and saved value of the next node; None where it gets no gradient."""
        i = self._left - 1
        found = self._grads.get(self._graph.n_inputs + i)
        return None if found is None else (found[0], self._saved[i])

    def join(self, joint: Any) -> None:
        """Gives the next node, which meets, what ``backward_meet`` made of all micro-batches."""
        self._joint = joint

    def input_gradients(self) -> tuple[Array, ...]:
        """The gradients of the inputs that were asked for, in their order."""
        asked = [v for v, wanted in enumerate(self._wanted) if wanted]
        missing = [v for v in asked if v not in self._grads]
        if missing:
            raise ValueError(f"Graph.backward: nobody reads inputs {missing}, expected all read for their gradients")
        return tuple(self._grads[v][0] for v in asked)


def _sum(first: tuple[Array, bool], second: tuple[Array, bool]) -> tuple[Array, bool]:
    """The sum of two gradients, in place where one of them may be written to."""
    out = first[0] if first[1] else second[0] if second[1] else None
    return K.add(first[0], second[0], out=out), True
