"""Layers as one tile of an image runs them: on rows of its own and on those that it fetches from other tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .layer import Context, Layer, Shape
from .layers_conv import Conv2d

Rows: TypeAlias = tuple[int, int]
Edges: TypeAlias = tuple[int, ...]


class Exchange(Protocol):
    """What is needed of ``parallel.spatial.RowExchange``."""

    tile: int
    tiles: int

    def sum(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all tiles."""

    def fetch(self, x: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Any:
        """Rows of other tiles."""

    def begin_fetch(self, x: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Callable[[], Any]:
        """The same in two steps: what is returned waits for the rows."""

    def join(self, x: Array, halo: Any, edges: Sequence[int], need: Rows) -> Array:
        """Own and fetched rows together."""

    def give_back(self, dx: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Array:
        """The gradient of the own rows from those of the rows needed."""

    def begin_give_back(self, dx: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Callable[[], Array]:
        """The same in two steps: what is returned waits for the other tiles' part."""


class Tiled(Layer):
    """A layer of the unsplit network, as a tile runs it: parameters and buffers are shared with it."""

    def __init__(self, inner: Layer, exchange: Exchange) -> None:
        self.inner, self.exchange = inner, exchange
        super().__init__()
        self.name, self.frozen, self.init = inner.name, inner.frozen, inner.init
        self.p, self.g, self.b = inner.p, inner.g, inner.b
        self.keeps_output = inner.keeps_output

    def parameter_specs(self) -> dict[str, Any]:
        return self.inner.parameter_specs() if hasattr(self, "inner") else {}

    def to_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return self.inner.to_torch(name, value)

    def from_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return self.inner.from_torch(name, value)

    def describe(self) -> str:
        return f"{self.inner!r}, tile {self.exchange.tile} of {self.exchange.tiles}"


class Windowed(Tiled):
    """Runs ``local``, the layer with the padding of this tile, on the rows it needs of a value split at ``edges``.

    ``crop`` rows of the result at top and bottom belong to other tiles; ``shape`` is that of the result without N.
    """

    def __init__(
        self,
        inner: Layer,
        local: Layer,
        exchange: Exchange,
        edges: Edges,
        needs: list[Rows],
        shape: Shape,
        crop: Rows = (0, 0),
    ) -> None:
        super().__init__(inner, exchange)
        local.name, local.frozen = inner.name, inner.frozen
        local.p, local.g, local.b = inner.p, inner.g, inner.b
        self.local, self.edges, self.needs, self.shape, self.crop = local, edges, needs, shape, crop

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        tile = self.exchange.tile
        halo = self.exchange.fetch(x, self.edges, self.needs)
        if not self.shape[0]:
            return K.empty((x.shape[0], *self.shape)), (x.shape, None)
        joined = self.exchange.join(x, halo, self.edges, self.needs[tile])
        y, saved = self.local.forward(joined, context=context)
        if any(self.crop):
            y = K.crop(y, (self.crop, (0, 0)))
        return y, (x.shape, saved)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        x_shape, kept = saved
        lo, hi = self.needs[self.exchange.tile]
        dx: Array | None = None
        if self.shape[0]:
            if any(self.crop):
                dy = K.pad(dy, (self.crop, (0, 0)))
            (dx,) = self.local.backward(dy, kept, need_dx, overwrite)
        if not need_dx:
            return (None,)
        if dx is None:
            dx = K.empty((x_shape[0], hi - lo, *x_shape[2:]))
        return (self.exchange.give_back(dx, self.edges, self.needs),)


class WindowedConv(Windowed):
    """A convolution that computes what the tile's own rows suffice for while the others' rows are on their way.

    ``pieces`` are those rows of the result, then those at the borders, each with the rows they need and the layer with
    their padding; none where the tile is too low for that. Backward sends the gradients of other tiles' rows off before
    it computes those of the weights. The rows are joined only then, and not kept: others keep ``x`` anyway.
    """

    local: Conv2d

    def __init__(
        self,
        inner: Conv2d,
        local: Conv2d,
        exchange: Exchange,
        edges: Edges,
        needs: list[Rows],
        shape: Shape,
        pieces: Sequence[tuple[Rows, Rows, Conv2d]],
    ) -> None:
        super().__init__(inner, local, exchange, edges, needs, shape)
        self.pieces = pieces

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        if not self.shape[0]:
            return super().forward(x, context=context)
        tile = self.exchange.tile
        arrive = self.exchange.begin_fetch(x, self.edges, self.needs)
        y: Array = K.empty((x.shape[0], *self.shape))
        if not self.pieces:
            halo = arrive()
            self._compute(self.local, self.exchange.join(x, halo, self.edges, self.needs[tile]), y)
            return y, (x.shape, (x, halo, self._kept(y)))
        (rows, (first, stop), layer), *borders = self.pieces
        start = self.edges[tile]
        own = np.ascontiguousarray(x[:, first - start : stop - start])
        self._compute(layer, own, y, rows)
        halo = arrive()
        for rows, need, layer in borders:
            self._compute(layer, self.exchange.join(x, halo, self.edges, need), y, rows)
        return y, (x.shape, (x, halo, self._kept(y)))

    def _kept(self, y: Array) -> Array | None:
        """The result where backward computes a ReLU's mask from it."""
        return y if self.local.relu else None

    def _compute(self, layer: Conv2d, x: Array, y: Array, rows: Rows | None = None) -> None:
        """Rows of the result (all of them by default) from the rows that they need."""
        weight, bias = self.p["weight"], self.p.get("bias")
        part = y if rows is None else y[:, rows[0] : rows[1]]
        if part.flags.c_contiguous:  # all rows, or some of one image
            K.conv2d(x, weight, bias, relu=layer.relu, out=part, **layer.window)
        else:
            part[...] = K.conv2d(x, weight, bias, relu=layer.relu, **layer.window)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if not self.shape[0]:
            return super().backward(dy, saved, need_dx, overwrite)
        x_shape, (x, halo, y) = saved
        lo, hi = need = self.needs[self.exchange.tile]
        dy = self.local.before_relu(dy, y, overwrite)
        finish = None
        if need_dx:
            dx = self.local.input_gradient(dy, (x_shape[0], hi - lo, *x_shape[2:]))
            finish = self.exchange.begin_give_back(dx, self.edges, self.needs)
        self.local.add_gradients(dy, self.exchange.join(x, halo, self.edges, need))
        return (None if finish is None else finish(),)


class Aligned(Tiled):
    """Runs the layer on inputs that are split at other rows: all get those of the first."""

    def __init__(self, inner: Layer, exchange: Exchange, edges: Sequence[Edges]) -> None:
        super().__init__(inner, exchange)
        self.edges = edges
        self.needs = list(pairwise(edges[0]))

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        need = self.needs[self.exchange.tile]
        moved = []
        for x, edges in zip(xs, self.edges, strict=True):
            halo = self.exchange.fetch(x, edges, self.needs) if edges != self.edges[0] else []
            moved.append(self.exchange.join(x, halo, edges, need))
        return self.inner.forward(*moved, context=context)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        dxs = self.inner.backward(dy, saved, need_dx)
        if not need_dx:
            return dxs
        return tuple(
            dx if dx is None or edges == self.edges[0] else self.exchange.give_back(dx.copy(), edges, self.needs)
            for dx, edges in zip(dxs, self.edges, strict=True)
        )


class TiledGlobalAvgPool2d(Tiled):
    """The mean of each whole image, on every tile; ``pixels`` are those of the whole image."""

    def __init__(self, inner: Layer, exchange: Exchange, pixels: int) -> None:
        super().__init__(inner, exchange)
        self.pixels = pixels

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        sums = x.sum((1, 2), dtype=np.float64)
        y: Array = K.empty(sums.shape)
        y[...] = self.exchange.sum(sums) / self.pixels
        return y, x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if not need_dx:
            return (None,)
        dx: Array = K.empty(saved)
        dx[...] = (dy * np.float32(self.exchange.tiles / self.pixels))[:, None, None]  # each tile's dy is its share
        return (dx,)
