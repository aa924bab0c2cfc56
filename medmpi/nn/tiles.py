"""A graph for one tile of an image: every rank holds some rows of each value and fetches what its windows reach over.

The result is the unsplit network's up to rounding. Convolutions, pooling, transposed convolutions, upsampling, padding,
batch normalisation (whose statistics must be over all tiles), sums, concatenations and global averages can be split.
After a global average every tile holds the same vectors and computes the same from them; their gradients and the loss
are shares of 1 / tiles, so that sums over tiles are right everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .graph import Graph, Node
from .layer import Context, Layer, Shape
from .layers_conv import Conv2d, ConvTranspose2d
from .layers_norm import BatchNorm2d
from .layers_pointwise import Add, Concat, Dropout, ReLU
from .layers_pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from .layers_resize import Pad2d, Upsample

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

    def join(self, x: Array, halo: Any, edges: Sequence[int], need: Rows) -> Array:
        """Own and fetched rows together."""

    def give_back(self, dx: Array, edges: Sequence[int], needs: Sequence[Rows]) -> Array:
        """The gradient of the own rows from those of the rows needed."""


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
            return K.empty((x.shape[0], *self.shape)), (x.shape, None, None)
        joined = self.exchange.join(x, halo, self.edges, self.needs[tile])
        y, saved = self.local.forward(joined, context=context)
        if isinstance(self.local, Conv2d):  # the rows are joined again in backward: x is kept by others anyway
            saved = x, saved[1]
        if any(self.crop):
            y = K.crop(y, (self.crop, (0, 0)))
        return y, (x.shape, halo, saved)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        x_shape, halo, kept = saved
        lo, hi = self.needs[self.exchange.tile]
        dx: Array | None = None
        if self.shape[0]:
            if any(self.crop):
                dy = K.pad(dy, (self.crop, (0, 0)))
            if isinstance(self.local, Conv2d):
                kept = self.exchange.join(kept[0], halo, self.edges, (lo, hi)), kept[1]
            (dx,) = self.local.backward(dy, kept, need_dx, overwrite)
        if not need_dx:
            return (None,)
        if dx is None:
            dx = K.empty((x_shape[0], hi - lo, *x_shape[2:]))
        return (self.exchange.give_back(dx, self.edges, self.needs),)


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


def row_edges(height: int, tiles: int, multiple: int = 1) -> Edges:
    """Where ``tiles`` parts of ``height`` rows begin and end: even, at multiples of ``multiple`` where that leaves none
    empty."""
    while multiple > 1 and height // multiple < tiles:
        multiple //= 2
    units = height // multiple
    return (*(units * t // tiles * multiple for t in range(tiles)), height)


def tile(graph: Graph, exchange: Exchange, *shapes: Shape) -> tuple[Graph, list[Edges | None]]:
    """This tile's version of ``graph`` for inputs of these shapes (N does not matter), and where values are split.

    Parameters, buffers and names are those of ``graph``; None stands for a value that every tile holds whole.
    ValueError names a layer that cannot be split.
    """
    sizes = graph.shapes(*shapes)
    tiles = exchange.tiles
    heights = [size[1] for size in sizes if len(size) == 4]
    multiple = 1
    while multiple * 2 * max(1, min(heights)) <= heights[0]:
        multiple *= 2
    edges: list[Edges | None] = [row_edges(size[1], tiles, multiple) for size in sizes[: graph.n_inputs]]
    tiled = Graph(graph.n_inputs)
    for i, node in enumerate(graph.nodes):
        ins = [edges[v] for v in node.inputs]
        layer, out = _tile_layer(node, exchange, ins, [sizes[v] for v in node.inputs], sizes[graph.n_inputs + i])
        edges.append(out)
        tiled.nodes.append(Node(node.name, layer, node.inputs))
    tiled.outputs = graph.outputs
    return tiled, edges


def local_shape(size: Shape, edges: Edges | None, tile: int) -> Shape:
    """The shape of a tile's part of a value."""
    return size if edges is None else (size[0], edges[tile + 1] - edges[tile], *size[2:])


def _tile_layer(
    node: Node, exchange: Exchange, ins: Sequence[Edges | None], sizes: Sequence[Shape], size: Shape
) -> tuple[Layer, Edges | None]:
    layer, first = node.layer, ins[0]
    if first is None:
        if any(edges is not None for edges in ins):
            raise ValueError(f"{node.name}: cannot be split into tiles, it joins whole vectors and rows")
        return layer, None
    if isinstance(layer, GlobalAvgPool2d):
        return TiledGlobalAvgPool2d(layer, exchange, sizes[0][1] * sizes[0][2]), None
    if isinstance(layer, (BatchNorm2d, ReLU, Add, Concat)):
        if all(edges == first for edges in ins):
            return layer, first
        if isinstance(layer, (Add, Concat)):
            return Aligned(layer, exchange, [edges for edges in ins if edges is not None]), first
    windowed = _window(layer, exchange, first, sizes[0], size)
    if windowed is None:
        raise ValueError(f"{node.name}: {layer!r} cannot be split into tiles")
    return windowed


def _window(layer: Layer, exchange: Exchange, edges: Edges, x: Shape, y: Shape) -> tuple[Windowed, Edges] | None:
    h, out_h, tile = x[1], y[1], exchange.tile
    if isinstance(layer, Dropout):
        return None
    if isinstance(layer, (ConvTranspose2d, Upsample)):
        plain = isinstance(layer, Upsample) or (
            layer.kernel_size == layer.stride and layer.padding == ((0, 0), (0, 0)) and layer.output_padding == (0, 0)
        )
        if not plain:
            return None
        scale = layer.scale if isinstance(layer, Upsample) else layer.stride[0]
        reach = 1 if isinstance(layer, Upsample) and layer.mode == "bilinear" else 0
        needs = [(max(0, a - reach), min(h, b + reach)) if a < b else (a, a) for a, b in _pairs(edges)]
        (lo, hi), (first, stop) = needs[tile], _pairs(edges)[tile]
        crop = (scale * (first - lo), scale * (hi - stop))
        out = tuple(scale * e for e in edges)
        shape = (out[tile + 1] - out[tile], *y[2:])
        return Windowed(layer, _twin(layer), exchange, edges, needs, shape, crop), out
    if isinstance(layer, Pad2d):
        top, bottom = layer.padding[0]
        out = tuple(0 if t == 0 else out_h if t == len(edges) - 1 else e + top for t, e in enumerate(edges))
        local = Pad2d(((top if tile == 0 else 0, bottom if tile == exchange.tiles - 1 else 0), layer.padding[1]))
        shape = (out[tile + 1] - out[tile], *y[2:])
        return Windowed(layer, local, exchange, edges, _pairs(edges), shape), out
    if isinstance(layer, Conv2d):
        pad, dilation = layer.padding[0][0], layer.dilation[0]
    elif isinstance(layer, MaxPool2d):
        pad, dilation = layer.padding[0], layer.dilation[0]
    elif isinstance(layer, AvgPool2d) and layer.padding == (0, 0) and not layer.ceil_mode:
        pad, dilation = 0, 1
    else:
        return None
    stride, reach = layer.stride[0], dilation * (layer.kernel_size[0] - 1) + 1
    out = (*(min(-(-e // stride), out_h) for e in edges[:-1]), out_h)
    needs = []
    for a, b in _pairs(out):
        needs.append((max(0, a * stride - pad), min(h, (b - 1) * stride - pad + reach)) if a < b else (0, 0))
    a, b = _pairs(out)[tile]
    padding = max(0, pad - a * stride), max(0, (b - 1) * stride - pad + reach - h)
    return Windowed(layer, _twin(layer, padding), exchange, edges, needs, (b - a, *y[2:])), out


def _pairs(edges: Edges) -> list[Rows]:
    return list(pairwise(edges))


def _twin(layer: Layer, rows: Rows = (0, 0)) -> Layer:
    """The same layer with other padding above and below."""
    if isinstance(layer, Conv2d):
        return Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride,
            padding=(rows, layer.padding[1]), dilation=layer.dilation, groups=layer.groups, bias=layer.bias,
            relu=layer.relu,
        )  # fmt: skip
    if isinstance(layer, ConvTranspose2d):
        return ConvTranspose2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, groups=layer.groups,
            dilation=layer.dilation, bias=layer.bias,
        )  # fmt: skip
    if isinstance(layer, Upsample):
        return Upsample(layer.scale, layer.mode)
    if isinstance(layer, MaxPool2d):
        side = layer.padding[1]
        return _MaxPool(layer, (rows, (side, side)))
    assert isinstance(layer, AvgPool2d)
    return AvgPool2d(layer.kernel_size, stride=layer.stride)


class _MaxPool(MaxPool2d):
    """Max pooling with other padding on each side."""

    def __init__(self, layer: MaxPool2d, padding: tuple[Rows, Rows]) -> None:
        super().__init__(layer.kernel_size, stride=layer.stride, dilation=layer.dilation, ceil_mode=layer.ceil_mode)
        self._sides = padding

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        y, indices = K.max_pool2d(
            x, self.kernel_size, stride=self.stride, padding=self._sides, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip
        return y, (indices, x.shape)
