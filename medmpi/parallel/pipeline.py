"""A batch through one stage of a model: in micro-batches, with the neighbouring stages (S0 eq. 10).

The same code serves a model that is not split: one stage, one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..kernels.arrays import Array, to_device, to_host
from .buckets import NamedNode
from .channel import Channel
from .grid import Grid
from .schedule import micro_batch_edges, one_f_one_b

Shapes: TypeAlias = Sequence[tuple[int, ...]]
Loss: TypeAlias = Callable[[slice, Array], Array]
Done: TypeAlias = Callable[[Any], None]


class StageGraph(Protocol):
    """What is needed of ``nn.Graph``."""

    nodes: list[Any]
    wanted: tuple[bool, ...]

    def start_forward(self, *xs: Array, context: Any) -> Any:
        """A forward pass that has not begun."""

    def start_backward(
        self, dys: Sequence[Array | None], saved: list[Any], *, done: Done, input_gradients: bool | Sequence[bool]
    ) -> Any:
        """A backward pass that has not begun."""

    def meetings(self, context: Any) -> list[int]:
        """The nodes in which micro-batches meet."""


class Pipeline:
    """Runs ``graph``, this rank's stage of the model.

    ``entering(n)`` and ``leaving(n)`` are the shapes of the values that come from the stage before and go to the next
    one for ``n`` samples; ``wanted_after`` says which of the latter need gradients. Micro-batches are made of whole
    ``unit``s of samples. ``schedule`` is "1f1b" or "gpipe". Where a layer needs the whole batch (batch normalisation
    with ``context.statistics``) and there are several micro-batches, all forward passes come before the first backward
    pass whatever the schedule, and micro-batches wait for each other in that layer: the result is that of the unsplit
    batch, and stages overlap only before their first and after their last such layer.

    With ``device`` the graph computes there: images are copied to it, the loss gets device logits.
    """

    def __init__(
        self,
        graph: StageGraph,
        grid: Grid,
        *,
        entering: Callable[[int], Shapes] = lambda n: (),
        leaving: Callable[[int], Shapes] = lambda n: (),
        wanted_after: Sequence[bool] = (),
        micro_batches: int = 1,
        schedule: str = "1f1b",
        unit: int = 1,
        whole_batch: bool = False,
        device: bool = False,
    ) -> None:
        self._device = device
        self._graph, self._grid, self.micro_batches = graph, grid, micro_batches
        self._entering, self._leaving, self._unit = entering, leaving, unit
        self._schedule = "gpipe" if whole_batch and micro_batches > 1 else schedule
        self._wanted_after = list(wanted_after)
        self._channels: list[Channel] = []
        if not grid.first:
            self._xs, self._dxs = self._pair(grid.stage - 1, "gradients to", "activations from")
        if not grid.last:
            self._dys, self._ys = self._pair(grid.stage + 1, "activations to", "gradients from")

    def _pair(self, peer: int, out: str, back: str) -> tuple[Channel, Channel]:
        """Channels from and to a neighbouring stage. Activations have tag 1, gradients 2."""
        world = self._grid.pipe
        assert world is not None
        forward = 1 if peer < self._grid.stage else 2
        pair = (
            Channel(world, peer, f"{back} stage {peer}", forward),
            Channel(world, peer, f"{out} stage {peer}", 3 - forward),
        )
        self._channels += pair
        return pair

    def poll(self) -> None:
        """Lets MPI make progress."""
        for channel in self._channels:
            channel.poll()

    def step(self, images: Array, n: int, context: Any, loss: Loss, done: Done) -> None:
        """Forward and backward of ``n`` samples; parameter gradients are added up in the graph's layers.

        ``images`` (n, h, w, c) are read by the first stage alone. ``loss(rows, logits)`` is called on the last stage
        for each micro-batch and returns the gradient of its logits. ``done(node)`` is called when a node's parameter
        gradients are complete. All stages of a replica call this together.
        """
        run = _Step(self, to_device(images) if self._device else images, n, context, loss, done)
        if self._schedule == "gpipe":
            run.together()
        else:
            for what, i in one_f_one_b(self._grid.stage, self._grid.stages, len(run.rows)):
                run.forward(i) if what == "forward" else run.backward(i)
        for channel in self._channels:
            channel.finish()

    def infer(self, images: Array, n: int, context: Any) -> Array | None:
        """The last stage's output for ``n`` samples, None on the other stages. Results do not depend on the split."""
        # more pieces than stages keep all of them busy
        pieces = 1 if self._grid.stages == 1 else 2 * self._grid.stages
        run = _Step(self, to_device(images) if self._device else images, n, context, None, _nothing, pieces)
        outputs = [run.infer(i) for i in range(len(run.rows))]
        for channel in self._channels:
            channel.finish()
        if not self._grid.last:
            return None
        outputs = [to_host(output) for output in outputs]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


class _Step:
    """One batch in the pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        images: Array,
        n: int,
        context: Any,
        loss: Loss | None,
        done: Done,
        micro_batches: int | None = None,
    ) -> None:
        self._p, self._graph, self._grid = pipeline, pipeline._graph, pipeline._grid
        self._images, self._loss, self._done = images, loss, done
        edges = micro_batch_edges(n, micro_batches or pipeline.micro_batches, pipeline._unit)
        self.rows = [slice(a, b) for a, b in pairwise(edges)]
        self._contexts = [replace(context, first_sample=context.first_sample + rows.start) for rows in self.rows]
        self._context = context
        self._saved: dict[int, list[Any]] = {}
        self._logits: dict[int, Array] = {}
        self._asked = self._asked_back = 0  # micro-batches whose arrival is prepared
        if not self._grid.first:
            self._expect_xs(0)
        if not self._grid.last and loss is not None:
            self._expect_dys(0)

    def _size(self, i: int) -> int:
        return int(self.rows[i].stop - self.rows[i].start)

    def _expect_xs(self, i: int) -> None:
        """One micro-batch ahead: its values come while this one is computed."""
        while self._asked <= min(i, len(self.rows) - 1):
            self._p._xs.expect(self._p._entering(self._size(self._asked)))
            self._asked += 1

    def _expect_dys(self, i: int) -> None:
        while self._asked_back <= min(i, len(self.rows) - 1):
            shapes = self._p._leaving(self._size(self._asked_back))
            self._p._dys.expect([s for s, wanted in zip(shapes, self._p._wanted_after, strict=True) if wanted])
            self._asked_back += 1

    def _start(self, i: int) -> Any:
        """The forward pass of a micro-batch, with its inputs."""
        if self._grid.first:
            xs: tuple[Array, ...] = (self._images[self.rows[i]],)
        else:
            xs = self._p._xs.receive()
            self._expect_xs(i + 1)
        return self._graph.start_forward(*xs, context=self._contexts[i])

    def _advance(self, run: Any, stop: int) -> None:
        """Runs nodes one by one where messages may need a push meanwhile."""
        if not self._p._channels:
            run.run(stop)
            return
        for i in range(len(run.saved), stop):
            run.run(i + 1)
            self._p.poll()

    def _end_forward(self, i: int, run: Any) -> None:
        self._saved[i] = run.saved
        if self._grid.last:
            (self._logits[i],) = run.outputs()
        else:
            self._p._ys.send(run.outputs())

    def _start_backward(self, i: int) -> Any:
        dys: list[Array | None]
        if self._grid.last:
            assert self._loss is not None
            dys = [self._loss(self.rows[i], self._logits.pop(i))]
        else:
            came = iter(self._p._dys.receive())
            self._expect_dys(i + 1)
            dys = [next(came) if wanted else None for wanted in self._p._wanted_after]
        final = i == len(self.rows) - 1
        return self._graph.start_backward(
            dys, self._saved.pop(i), done=self._final if final else self._partial, input_gradients=self._graph.wanted
        )

    def _partial(self, node: NamedNode) -> None:
        self._p.poll()

    def _final(self, node: NamedNode) -> None:
        self._done(node)
        self._p.poll()

    def _end_backward(self, run: Any) -> None:
        if not self._grid.first:
            self._p._dxs.send(run.input_gradients())

    def forward(self, i: int) -> None:
        """The forward pass of micro-batch i, from the stage before to the next one."""
        run = self._start(i)
        self._advance(run, len(self._graph.nodes))
        self._end_forward(i, run)

    def backward(self, i: int) -> None:
        """The backward pass of micro-batch i, from the next stage to the one before."""
        run = self._start_backward(i)
        run.run(0)
        self._end_backward(run)

    def infer(self, i: int) -> Array:
        """The outputs of micro-batch i; only the last stage's are of use here."""
        run = self._start(i)
        self._advance(run, len(self._graph.nodes))
        if not self._grid.last:
            self._p._ys.send(run.outputs())
        return run.outputs()[0]  # type: ignore[no-any-return]

    def together(self) -> None:
        """All forward passes, then all backward passes; in layers that need the whole batch, all wait for all."""
        meetings = self._graph.meetings(self._context)
        every = range(len(self.rows))
        stops = [*meetings, len(self._graph.nodes)]
        runs = {}
        for i in every:
            runs[i] = self._start(i)
            self._advance(runs[i], stops[0])
            if not meetings:
                self._end_forward(i, runs[i])
        for node, stop in zip(meetings, stops[1:], strict=True):
            joint = self._graph.nodes[node].layer.forward_meet([runs[i].inputs() for i in every], self._context)
            for i in every:
                runs[i].join(joint)
                self._advance(runs[i], stop)
                if stop == stops[-1]:
                    self._end_forward(i, runs[i])
        del runs
        back = {}
        stops = [*(m + 1 for m in reversed(meetings)), 0]
        for i in every:
            back[i] = self._start_backward(i)
            back[i].run(stops[0])
            if not meetings:
                self._end_backward(back[i])
        for node, stop in zip(reversed(meetings), stops[1:], strict=True):
            arrived = [back[i].arriving() for i in every]
            joint = None if None in arrived else self._graph.nodes[node].layer.backward_meet(arrived)
            for i in every:
                back[i].join(joint)
                back[i].run(stop)
                if stop == 0:
                    self._end_backward(back[i])


def _nothing(node: NamedNode) -> None:
    pass
