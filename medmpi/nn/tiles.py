"""A graph for one tile of an image: every rank holds some rows of each value and fetches what its windows reach over.

The result is the unsplit network's up to rounding. Convolutions, pooling, transposed convolutions, upsampling, padding,
batch normalisation (whose statistics must be over all tiles), sums, concatenations and global averages can be split.
After a global average every tile holds the same vectors and computes the same from them; their gradients and the loss
are shares of 1 / tiles, so that sums over tiles are right everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .. import kernels as K
from ..kernels.arrays import Array
from .graph import Graph, Node
from .layer import Context, Layer, Shape
from .layers_conv import Conv2d, ConvTranspose2d
from .layers_norm import BatchNorm2d
from .layers_pointwise import Add, Concat, Dropout, ReLU
from .layers_pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from .layers_resize import Pad2d, Upsample
from .tile_layers import Aligned, Edges, Exchange, Rows, TiledGlobalAvgPool2d, Windowed, WindowedConv

_WORTH = 8  # rows of a result that are worth a call of their own while other tiles' rows are on their way


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

    def padding(first: int, stop: int) -> Rows:
        return max(0, pad - first * stride), max(0, (stop - 1) * stride - pad + reach - h)

    shape = (b - a, *y[2:])
    if not isinstance(layer, Conv2d):
        return Windowed(layer, _twin(layer, padding(a, b)), exchange, edges, needs, shape), out
    first, stop = _pairs(edges)[tile]
    inner = max(a, -(-(first + pad) // stride)) if first else a
    outer = min(b, (stop + pad - reach) // stride + 1) if stop < h else b
    pieces = []
    if outer - inner >= max(_WORTH, (b - a) // 2) and (inner, outer) != (a, b):
        for p, q in ((inner, outer), (a, inner), (outer, b)):
            if p < q:
                need = max(0, p * stride - pad), min(h, (q - 1) * stride - pad + reach)
                pieces.append(((p - a, q - a), need, _conv_twin(layer, padding(p, q))))
    return WindowedConv(layer, _conv_twin(layer, padding(a, b)), exchange, edges, needs, shape, pieces), out


def _pairs(edges: Edges) -> list[Rows]:
    return list(pairwise(edges))


def _twin(layer: Layer, rows: Rows = (0, 0)) -> Layer:
    """The same layer with other padding above and below."""
    if isinstance(layer, Conv2d):
        return _conv_twin(layer, rows)
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


def _conv_twin(layer: Conv2d, rows: Rows) -> Conv2d:
    return Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride,
        padding=(rows, layer.padding[1]), dilation=layer.dilation, groups=layer.groups, bias=layer.bias,
        relu=layer.relu,
    )  # fmt: skip


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
