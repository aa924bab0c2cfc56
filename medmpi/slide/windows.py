"""Scores of all windows of a tile, by one of two engines that agree (to 1e-5): one window at a time, or shared.

The windows start at multiples of the heatmap's stride from the tile's first pixel. :func:`choose` takes the shared
engine where it is provably equal and costs less arithmetic, and says why it did not otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.kernels.arrays import Array
from medmpi.slide.rectangles import Shape
from medmpi.slide.shared import NotShareable, SharedPlan, plan

Counts: TypeAlias = tuple[int, int]
# A normalised tile ((rows - 1) stride + h, (columns - 1) stride + w, channels) and its rows and columns of windows.
Tile: TypeAlias = tuple[Array, Counts]

ENGINES = ("auto", "windowed", "shared")
_CONTEXT = nn.Context(train=False)
_WINDOW_PIXELS = 32 * 224 * 224  # of one batch: more does not make the convolutions faster
_TILE_BYTES = 256 << 20  # of the shared engine's largest value
_MERGED_BYTES = 128 << 20  # the same, of a tile of several patches: 256 MiB save 3 % more
_FREE_BYTES = 128 << 20  # that are kept for the next tile
_MOST_PATCHES = 16  # of a tile's side: more save little


class Engine(Protocol):
    """Logits of the windows of tiles."""

    def run(self, tiles: Iterable[Tile], stride: int) -> Iterator[Array]:
        """float32 (rows, columns, classes) for each tile, in order."""
        ...

    def macs(self, stride: int, counts: Counts) -> int:
        """Multiply-adds of a tile of so many windows."""
        ...

    def shapes(self, stride: int, patch: int) -> list[Shape]:
        """Rows and columns of patches that are worth a tile together, the cheapest first and (1, 1) last."""
        ...


@dataclass
class Windowed:
    """Every window through the whole network, in batches that go on over tiles. Works for every classifier."""

    graph: nn.Graph
    window: tuple[int, int]
    channels: int = 3

    def __post_init__(self) -> None:
        h, w = self.window
        self._batch = max(1, min(32, _WINDOW_PIXELS // (h * w)))
        self._per_window = self.graph.macs((1, h, w, self.channels))

    def run(self, tiles: Iterable[Tile], stride: int) -> Iterator[Array]:
        h, w = self.window
        batch: Array = K.empty((self._batch, h, w, self.channels))
        used = 0
        ends: deque[tuple[int, Counts]] = deque()  # tiles that wait for their last window, by the windows before it
        found: list[Array] = []
        have = started = 0
        for tile, counts in tiles:
            started += counts[0] * counts[1]
            ends.append((started, counts))
            for y in range(0, counts[0] * stride, stride):
                for x in range(0, counts[1] * stride, stride):
                    batch[used] = tile[y : y + h, x : x + w]
                    used += 1
                    if used == self._batch:
                        found.append(self._forward(batch))
                        have, used = have + used, 0
            while ends and ends[0][0] <= have:
                yield self._take(found, ends.popleft()[1])
        if used:
            found.append(self._forward(np.ascontiguousarray(batch[:used])))
        for _, counts in ends:
            yield self._take(found, counts)

    def _forward(self, batch: Array) -> Array:
        (logits,), _ = self.graph.forward(batch, context=_CONTEXT)
        return logits

    @staticmethod
    def _take(found: list[Array], counts: Counts) -> Array:
        """The first results, as many as a tile has windows; the rest stays."""
        n = counts[0] * counts[1]
        joined = np.concatenate(found) if len(found) > 1 else found[0]
        found[:] = [joined[n:]]
        return joined[:n].reshape(*counts, -1)

    def macs(self, stride: int, counts: Counts) -> int:
        return counts[0] * counts[1] * self._per_window

    def shapes(self, stride: int, patch: int) -> list[Shape]:
        return [(1, 1)]


@dataclass
class Shared:
    """Each layer once a tile; see :mod:`medmpi.slide.shared`. Large tiles are cut to bound the memory."""

    plan: SharedPlan

    def run(self, tiles: Iterable[Tile], stride: int) -> Iterator[Array]:
        for tile, counts in tiles:
            yield self._logits(tile, stride, counts)
            memory = K.memory_statistics()
            if memory["reserved"] - memory["in_use"] > _FREE_BYTES:  # blocks of sizes that no longer come
                K.trim_memory()

    def _logits(self, tile: Array, stride: int, counts: Counts) -> Array:
        (h, w), parts = self.plan.window, self._parts(stride, counts)
        found: Array | None = None
        for y0, y1 in parts[0]:
            for x0, x1 in parts[1]:
                part = tile[y0 * stride : (y1 - 1) * stride + h, x0 * stride : (x1 - 1) * stride + w]
                logits = self.plan.forward(part, stride, (y1 - y0, x1 - x0))
                if found is None:
                    found = np.empty((*counts, logits.shape[-1]), np.float32)
                found[y0:y1, x0:x1] = logits
        assert found is not None
        return found

    def macs(self, stride: int, counts: Counts) -> int:
        parts = self._parts(stride, counts)
        return sum(self.plan.macs(stride, (y1 - y0, x1 - x0)) for y0, y1 in parts[0] for x0, x1 in parts[1])

    def shapes(self, stride: int, patch: int) -> list[Shape]:
        """Windows of neighbours overlap: at stride 16, 2 x 2 patches of 224 pixels cost 0.60 of four tiles, 8 x 8 0.37.

        The largest value of a tile stays within the memory, so that no tile is cut.
        """

        if stride > patch:  # not all patches own points
            return [(1, 1)]

        def counts(h: int, w: int) -> Counts:
            return -(-h * patch // stride), -(-w * patch // stride)

        def fits(h: int, w: int) -> bool:
            return max(h, w) <= _MOST_PATCHES and self.plan.largest(stride, counts(h, w)) * 4 <= _MERGED_BYTES

        costs = {(1, 1): float(self.macs(stride, counts(1, 1)))}
        for h in takewhile(lambda h: fits(h, 1), count(1)):
            for w in takewhile(lambda w, h=h: fits(h, w), count(1)):  # type: ignore[misc]
                costs[h, w] = self.plan.macs(stride, counts(h, w)) / (h * w)
        worth = [shape for shape in costs if costs[shape] < costs[1, 1]]
        return [*sorted(worth, key=lambda shape: (costs[shape], shape)), (1, 1)]

    def _parts(self, stride: int, counts: Counts) -> list[list[tuple[int, int]]]:
        """Ranges of rows and columns whose largest value fits the memory."""
        pieces = 1
        while True:
            sizes = [-(-count // pieces) for count in counts]
            if pieces >= max(counts) or self.plan.largest(stride, (sizes[0], sizes[1])) * 4 <= _TILE_BYTES:
                break
            pieces += 1
        return [[(i, min(i + s, n)) for i in range(0, n, s)] for s, n in zip(sizes, counts, strict=True)]


def choose(
    graph: nn.Graph,
    window: tuple[int, int],
    stride: int,
    counts: tuple[int, int],
    *,
    channels: int = 3,
    engine: str = "auto",
) -> tuple[Engine, str]:
    """The engine for tiles of ``counts`` windows, and one line that says which and why.

    ``graph`` is folded. NotShareable where ``engine="shared"`` is asked for and would not be exact.
    """  # fmt: skip
    if engine not in ENGINES:
        raise ValueError(f"choose: engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    windowed = Windowed(graph, window, channels)
    if engine == "windowed":
        return windowed, "windowed engine: as asked for"
    try:
        shared = Shared(plan(graph, window, channels))
    except NotShareable as reason:
        if engine == "shared":
            raise
        return windowed, f"windowed engine: shared convolution would not be exact, {reason}"
    saved = windowed.macs(stride, counts) / max(shared.macs(stride, counts), 1)
    if engine == "auto" and saved < 1:
        return windowed, f"windowed engine: shared convolution would cost {1 / saved:.1f} times its arithmetic"
    return shared, (
        f"shared convolution: exact, {saved:.1f} times less arithmetic than window by window"
        f" (shared until {shared.plan.until})"
    )


def probabilities(logits: Array) -> NDArray[np.float32]:
    """Softmax over the last axis, in float64; one logit is a sigmoid's (its probability and the rest)."""
    wide = logits.astype(np.float64)
    if wide.shape[-1] == 1:
        p = 1 / (1 + np.exp(-wide))
        return np.concatenate([1 - p, p], axis=-1).astype(np.float32)
    wide = np.exp(wide - wide.max(-1, keepdims=True))
    found: NDArray[np.float32] = (wide / wide.sum(-1, keepdims=True)).astype(np.float32)
    return found
