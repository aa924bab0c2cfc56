"""Inference without Python in the way: a graph's kernel calls, recorded once on planned memory and run again.

At batch 1 a small network has a hundred nodes of a few microseconds each; to find the next one from Python takes as
long as to compute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import kernels as K
from ..kernels.arrays import Array
from .graph import Graph
from .layer import Context, Shape


class Session:
    """A graph for inputs of fixed shapes, as a recording of its kernel calls on memory that is planned once.

    ``session(x)`` computes what ``graph.forward(x, context=Context(train=False))`` does, to the bit. Without copies:
    fill ``inputs``, call ``run()``, read ``outputs``, which the next run overwrites. Weights may change in place;
    the running statistics of a batch normalisation, and a folded graph's weights, are those of now. One thread may
    use a session at a time; several sessions may share a graph.
    Raises ValueError where the shapes do not fit, RuntimeError where a layer computes outside the kernels.
    """

    def __init__(self, graph: Graph, *shapes: Shape) -> None:
        graph.shapes(*shapes)
        self._graph, self._arena, self._recording = graph, K.Arena(), K.Recording()
        random = np.random.default_rng(0)
        self.inputs: tuple[Array, ...] = tuple(random.standard_normal(shape, dtype=np.float32) for shape in shapes)
        with self._arena:  # notes how long arrays live
            first = self._forward()
        del first
        with self._arena, self._recording:
            self.outputs = self._forward()
        for x in self.inputs:
            x[...] = random.standard_normal(x.shape, dtype=np.float32)
        expected = self._forward()
        self.run()
        if not all(np.array_equal(y, e, equal_nan=True) for y, e in zip(self.outputs, expected, strict=True)):
            raise RuntimeError("Session: recorded calls give another result; a layer computes outside the kernels")

    def _forward(self) -> tuple[Array, ...]:
        return self._graph.forward(*self.inputs, context=Context(train=False))[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the planned memory: all values between inputs and outputs."""
        return self._arena.nbytes()

    def run(self) -> None:
        """Computes ``outputs`` from ``inputs``."""
        self._recording.run()

    def __call__(self, *xs: Array) -> tuple[Array, ...]:
        """The outputs for inputs of the session's shapes, as new arrays."""
        self.fill(xs)
        self._recording.run()
        return tuple(y.copy() for y in self.outputs)

    def fill(self, xs: Sequence[Any]) -> None:
        """Copies inputs to their places. ValueError where number, shape or dtype differ."""
        if len(xs) != len(self.inputs):
            raise ValueError(f"Session: {len(xs)} inputs, expected {len(self.inputs)}")
        for mine, x in zip(self.inputs, xs, strict=True):
            if x.shape != mine.shape or x.dtype != mine.dtype:
                raise ValueError(f"Session: x is {x.dtype} {x.shape}, expected {mine.dtype} {mine.shape}")
            np.copyto(mine, x)
