"""Inference without Python in the way: a graph's kernel calls, recorded once on planned memory and run again.

At batch 1 a small network has a hundred nodes of a few microseconds each; to find the next one from Python takes as
long as to compute it. A large batch, in turn, leaves the caches between two layers: it may be faster a few samples at a
time, through the whole network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import kernels as K
from ..kernels.arrays import Array
from .fold import tune
from .graph import Graph
from .layer import Context, Shape

_ROUNDS = 20  # of timing a number of samples
_SECONDS = 0.5  # after which two of them will do


class Session:
    """A graph for inputs of fixed shapes, as a recording of its kernel calls on memory that is planned once.

    ``session(x)`` computes what ``graph.forward(x, context=Context(train=False))`` does, to the bit. Without copies:
    fill ``inputs``, call ``run()``, read ``outputs``, which the next run overwrites. ``micro_batch``, a divisor of the
    batch, is the number of samples that go through the network together; ``Session.tuned`` finds the best one. Weights
    may change in place; the running statistics of a batch normalisation, and a folded graph's weights, are those of
    now. With ``device`` "cuda", for a graph whose layers were moved there (``Layer.move``), inputs and outputs are
    device arrays, and a CUDA graph takes the recording's place unless ``captured`` is false. One thread may use a
    session at a time; several sessions may share a graph.
    Raises ValueError where the shapes do not fit, RuntimeError where a layer computes outside the kernels.
    """

    def __init__(
        self,
        graph: Graph,
        *shapes: Shape,
        micro_batch: int | None = None,
        device: str = "cpu",
        captured: bool = True,
    ) -> None:
        graph.shapes(*shapes)
        batch = shapes[0][0]
        self.micro_batch = batch if micro_batch is None else micro_batch
        if any(shape[0] != batch for shape in shapes) or self.micro_batch < 1 or batch % self.micro_batch:
            raise ValueError(f"Session: micro_batch is {micro_batch}, expected a divisor of the batch of {batch}")
        self._graph, self._arena = graph, K.Arena()
        recording = K.Recording()
        self._replay: Callable[[], None] = recording.run
        random = np.random.default_rng(0)
        self._xs = tuple(random.standard_normal((self.micro_batch, *shape[1:]), dtype=np.float32) for shape in shapes)
        if device != "cpu":
            self._xs = tuple(K.to_device(x) for x in self._xs)
        with self._arena:  # notes how long arrays live
            first = self._forward()
        del first
        if device != "cpu" and captured:
            cuda_graph = K.CudaGraph()
            with cuda_graph:
                self._ys = self._forward()
            self._replay = cuda_graph.launch
        else:
            with self._arena, recording:
                self._ys = self._forward()
        self._check(random)
        whole = self.micro_batch == batch
        self.inputs: tuple[Array, ...] = self._xs
        self.outputs: tuple[Array, ...] = self._ys
        if not whole:
            self.inputs = tuple(K.empty(shape, device=device) for shape in shapes)
            self.outputs = tuple(K.empty((batch, *y.shape[1:]), device=device) for y in self._ys)

    @classmethod
    def tuned(cls, graph: Graph, *shapes: Shape) -> Session:
        """The fastest session for a folded graph: algorithms (``nn.tune``) and ``micro_batch`` chosen by timing."""
        batch = shapes[0][0]
        sessions = []
        for samples in [*(n for n in (1, 2, 4, 8, 16) if n < batch and batch % n == 0), batch]:
            tune(graph, *((samples, *shape[1:]) for shape in shapes))
            sessions.append(cls(graph, *shapes, micro_batch=samples))
        each = [float("inf")] * len(sessions)  # seconds for a sample
        for turn in range(_ROUNDS if len(sessions) > 1 else 0):
            for i, session in enumerate(sessions):
                if turn < 2 or each[i] * session.micro_batch * turn < _SECONDS:
                    start = time.perf_counter()
                    session._replay()
                    each[i] = min(each[i], (time.perf_counter() - start) / session.micro_batch)
        return sessions[each.index(min(each))]

    def _forward(self) -> tuple[Array, ...]:
        return self._graph.forward(*self._xs, context=Context(train=False))[0]

    def _check(self, random: np.random.Generator) -> None:
        """Runs the recording on other values than it was recorded with."""
        for x in self._xs:
            x[...] = random.standard_normal(x.shape, dtype=np.float32)
        expected = self._forward()
        self._replay()
        pairs = [(K.to_host(y), K.to_host(e)) for y, e in zip(self._ys, expected, strict=True)]
        if not all(np.array_equal(y, e, equal_nan=True) for y, e in pairs):
            raise RuntimeError("Session: recorded calls give another result; a layer computes outside the kernels")

    @property
    def nbytes(self) -> int:
        """Bytes of the planned memory: all values between inputs and outputs."""
        return self._arena.nbytes()

    def run(self) -> None:
        """Computes ``outputs`` from ``inputs``."""
        if self.inputs is self._xs:
            self._replay()
            return
        for start in range(0, len(self.inputs[0]), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            for mine, x in zip(self._xs, self.inputs, strict=True):
                mine[...] = x[part]
            self._replay()
            for y, mine in zip(self.outputs, self._ys, strict=True):
                y[part] = mine

    def __call__(self, *xs: Array) -> tuple[Array, ...]:
        """The outputs for inputs of the session's shapes, as new arrays."""
        self.fill(xs)
        self.run()
        return tuple(y.copy() for y in self.outputs)

    def fill(self, xs: Sequence[Any]) -> None:
        """Copies inputs to their places. ValueError where number, shape or dtype differ."""
        if len(xs) != len(self.inputs):
            raise ValueError(f"Session: {len(xs)} inputs, expected {len(self.inputs)}")
        for mine, x in zip(self.inputs, xs, strict=True):
            if x.shape != mine.shape or x.dtype != mine.dtype:
                raise ValueError(f"Session: x is {x.dtype} {x.shape}, expected {mine.dtype} {mine.shape}")
            mine[...] = x
