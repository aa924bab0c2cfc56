"""The forward and backward pass of a training step on a device, captured in a CUDA graph.

The host gives the device a few hundred kernels in a step, each of which takes it longer than many of them run. A graph
is given at once. All that differs from step to step is read from device memory: images, labels, what the loss is
divided by, and the keys of random numbers. The update, with its rate, is one kernel and stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.data import Batch
from medmpi.kernels.arrays import Array
from medmpi.nn.keys import DeviceKeys
from medmpi.train import step

if TYPE_CHECKING:
    from medmpi.train.job import Job

_WARM = 2  # steps before a batch size's graph: they make the tables and the memory that it uses
_SIZES = 2  # of batches that have graphs: the usual one, and the last one of an epoch


def obstacle(job: Job) -> str | None:
    """Why the host has to look into the passes of this job's steps; None where it need not."""
    if job.statistics is not None:
        return "--sync-batchnorm joins batch statistics in host memory"
    if job.criterion.terms == 0:
        return "--focal-gamma is computed in host memory"
    if any(isinstance(n.layer, nn.BatchNorm2d) and n.layer.momentum is None for n in job.graph.nodes):
        return "a batch normalisation averages by its number of batches"
    return None


class DeviceStep:
    """Stands in for ``step.run`` where there is no ``obstacle``; to the bit the same with and without ``captured``."""

    def __init__(self, job: Job, *, captured: bool = True) -> None:
        self._job, self._captured = job, captured
        self._passes: dict[int, _Pass] = {}  # by size of the batch, the one used last at the end

    def run(
        self, batch: Batch, context: nn.Context, divisors: NDArray[np.float64], done: Callable[[Any], None]
    ) -> step.Tally:
        """Adds the gradients of this rank's share of the batch."""
        n = len(batch.ids)
        if n == 0:
            return step.run(self._job, batch, context, divisors, done)
        mine = self._passes.pop(n, None) or _Pass(self._job, n, batch.labels.shape)
        while len(self._passes) >= _SIZES:
            del self._passes[next(iter(self._passes))]
        self._passes[n] = mine
        graphs = (p.graph for p in self._passes.values() if p.graph is not None)
        return mine.run(batch, context, divisors, done, captured=self._captured, beside=next(graphs, None))

    @property
    def graphs(self) -> dict[int, int]:
        """The number of kernels, copies and fills of each batch size's graph."""
        return {n: len(p.graph) for n, p in self._passes.items() if p.graph is not None}


class _Pass:
    """Batches of one size."""

    def __init__(self, job: Job, n: int, labels: tuple[int, ...]) -> None:
        self._job, self._n, self._steps = job, n, 0
        pieces = job.pipeline.micro_batches
        self._images = K.empty((n, *job.image), device="cuda")
        self._labels: NDArray[np.int64] = K.empty(labels, np.int64, device="cuda")
        self._divisors: NDArray[np.float64] = K.empty((job.criterion.terms,), np.float64, device="cuda")
        self._values: NDArray[np.float64] = K.empty((pieces * job.criterion.terms,), np.float64, device="cuda")
        self._correct: NDArray[np.int64] = K.empty((pieces,), np.int64, device="cuda")
        self._values[...] = 0
        self._correct[...] = 0
        self._keys = DeviceKeys()
        self.graph: K.CudaGraph | None = None
        self._used: list[Array] = []  # the graph's arrays in the layers
        self._counted: list[tuple[NDArray[Any], Any]] = []  # counters of the layers, and what a step adds
        self._nodes: list[Any] = []

    def run(
        self,
        batch: Batch,
        context: nn.Context,
        divisors: NDArray[np.float64],
        done: Callable[[Any], None],
        *,
        captured: bool,
        beside: K.CudaGraph | None,
    ) -> step.Tally:
        self._check(batch.labels)
        self._images[...] = batch.images
        self._labels[...] = batch.labels if batch.device_labels is None else batch.device_labels
        self._divisors[...] = self._job.criterion.divisors(divisors)
        self._keys.begin(context)
        if self.graph is not None and not self._is_current():
            self.graph = None
        if self.graph is not None:
            for counter, more in self._counted:
                counter += more
            self.graph.launch()
        elif captured and self._steps >= _WARM:
            self._capture(context, beside).launch()
        else:
            self._compute(context)
        self._steps += 1
        for node in self._nodes:
            done(node)
        values, correct = K.to_host(self._values), K.to_host(self._correct)
        tally = step.Tally(images=self._n, correct=int(correct.sum()), predictions=batch.labels.size)
        for value in values.reshape(len(correct), -1):
            tally.loss += float(value.sum())
        return tally

    def _check(self, labels: NDArray[np.int64]) -> None:
        """The device does not look at labels."""
        classes = len(self._job.dataset.classes)
        if labels.min() < 0 or labels.max() >= classes:
            at = tuple(int(i) for i in np.argwhere((labels < 0) | (labels >= classes))[0])
            raise ValueError(f"labels{list(at)} is {labels[at]}, expected 0 to {classes - 1}")

    def _compute(self, context: nn.Context) -> None:
        criterion, terms, piece = self._job.criterion, self._job.criterion.terms, 0
        self._nodes.clear()

        def loss(rows: slice, logits: Array) -> Array:
            nonlocal piece
            labels = self._labels[rows]
            values = self._values[piece * terms : (piece + 1) * terms]
            K.count_correct(logits, labels, self._correct[piece : piece + 1])
            piece += 1
            return criterion.enqueue(logits, labels, self._divisors, values)

        with_keys = replace(context, keys=self._keys)
        self._job.pipeline.step(self._images, self._n, with_keys, loss, self._nodes.append)

    def _capture(self, context: nn.Context, beside: K.CudaGraph | None) -> K.CudaGraph:
        """The graph; Python's own part of the step is done then."""
        counters = [b for table in self._tables() for b in table.values() if b.dtype.kind == "i"]
        before = [counter.copy() for counter in counters]
        graph = K.CudaGraph(beside)
        with graph:
            self._compute(context)
        self._counted = [(now, now - then) for now, then in zip(counters, before, strict=True)]
        self._used = list(self._arrays())
        self.graph = graph
        return graph

    def _tables(self) -> Iterator[dict[str, Array]]:
        for node in self._job.graph.nodes:
            yield from (node.layer.p, node.layer.g, node.layer.b)

    def _arrays(self) -> Iterator[Array]:
        for table in self._tables():
            yield from table.values()

    def _is_current(self) -> bool:
        """Whether the layers still have the arrays that the graph reads and writes."""
        now = list(self._arrays())
        return len(now) == len(self._used) and all(a is b for a, b in zip(now, self._used, strict=True))
