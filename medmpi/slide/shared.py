"""All windows of a tile in one pass: layers are computed once a tile, not once a window (S4-36).

A window that starts at pixel p reads, of a layer whose cumulative stride is t, the values at p, p + t, p + 2t, ... If
no layer before it pads, these values depend on the pixel they stand at and not on the window, so windows share them.
Where the heatmap's stride s is no multiple of t, windows start at several residues modulo t: the multiples of
gcd(s, t). Each residue has a map of its own (a *fragment*: Giusti et al., Fast image scanning with deep max-pooling
convolutional neural networks, 2013), kept along the batch axis. Fragments split only where a layer strides, so early
layers are shared by all of them and any heatmap stride works.

:func:`plan` proves this layer by layer for a given graph and window. Zero padding and pooling windows that hang over
the edge make a value depend on where its window ends: from such a layer on, as from the layers that turn images into
vectors, each window is computed by itself, from its part of the shared maps. Where that is the first layer (nearly all
published networks pad), nothing is shared: NotShareable says which layer it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd, lcm, prod

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.kernels.arrays import Array
from medmpi.nn.layer import Layer, Shape

_CONTEXT = nn.Context(train=False)
_ANY_PLACE = (nn.ReLU, nn.Dropout, nn.BatchNorm2d, nn.Add, nn.Concat)  # the same at every pixel
_CHUNK_VALUES = 1 << 24  # of the windows that are cut from shared maps at once


class NotShareable(ValueError):
    """Why a network's windows share nothing; the message names the layer."""


@dataclass(frozen=True)
class _Map:
    """One window's view of a shared value: its ``shape`` (h, w, c) and the pixels between its neighbours."""

    shape: tuple[int, int, int]
    strides: tuple[int, int]


@dataclass(frozen=True)
class SharedPlan:
    """A graph whose values ``maps`` are shared by windows of ``window`` (h, w) pixels, as :func:`plan` has shown.

    ``maps`` has a value's view, or None where it is each window's own. ``until`` says which layer ends the sharing.
    """

    graph: nn.Graph
    window: tuple[int, int]
    channels: int
    maps: tuple[_Map | None, ...]
    until: str
    arena: K.Arena = field(default_factory=K.Arena, compare=False, repr=False)

    @property
    def total_strides(self) -> tuple[int, int]:
        """Pixels between neighbours of the coarsest shared value, per axis."""
        rows, columns = zip(*(m.strides for m in self.maps if m is not None), strict=True)
        return lcm(*rows), lcm(*columns)

    def reach(self, stride: int, counts: tuple[int, int]) -> tuple[int, int]:
        """The span of the windows' starts per axis, rounded up to whole fragments."""
        totals = self.total_strides
        rows, columns = (
            ((count - 1) * stride // total + 1) * total for total, count in zip(totals, counts, strict=True)
        )
        return rows, columns

    def forward(self, tile: Array, stride: int, counts: tuple[int, int]) -> Array:
        """Logits (rows, columns, classes) of the windows that start at multiples of ``stride`` in a tile.

        ``tile`` is float32 ((rows-1) * stride + h, (columns-1) * stride + w, channels), normalised. What the last
        fragments read beyond it is 0, for results that nobody asks for.
        """
        reach = self.reach(stride, counts)
        beyond = [side + r - 1 - have for side, r, have in zip(self.window, reach, tile.shape[:2], strict=True)]
        wanted = self._cut_values()
        with self.arena:  # tiles of different sizes take the same memory
            padding = (0, max(0, beyond[0])), (0, max(0, beyond[1]))
            live = self._layers([K.pad(np.ascontiguousarray(tile)[None], padding)], wanted, stride, reach)
        return self._windows(live, stride, counts)

    def _layers(
        self, live: list[Array | None], wanted: list[int], stride: int, reach: tuple[int, int]
    ) -> dict[int, Array]:
        """The ``wanted`` ones of the shared values, from ``live``, which has the input."""
        dies = self.graph.plan().dies
        for i, node in enumerate(self.graph.nodes):
            after = self.maps[1 + i]
            if after is None:
                live.append(None)
                continue
            xs = [live[v] for v in node.inputs]
            before = [self.maps[v] for v in node.inputs]
            try:
                live.append(_apply(node.layer, xs, before, after, stride, reach))  # type: ignore[arg-type]
            except Exception as error:
                error.add_note(f"in shared forward of {node.name}, {node.layer!r}")
                raise
            del xs
            for v in dies[i]:
                if v not in wanted:
                    live[v] = None
        return {v: live[v] for v in wanted}  # type: ignore[misc]

    def _cut_values(self) -> list[int]:
        """The shared values that a window's own layers read."""
        own = [node for i, node in enumerate(self.graph.nodes) if self.maps[1 + i] is None]
        return sorted({v for node in own for v in node.inputs if self.maps[v] is not None})

    def _windows(self, shared: dict[int, Array], stride: int, counts: tuple[int, int]) -> Array:
        """The layers that are each window's own, on windows cut from the shared maps.

        Windows are cut only for layers that need them: their means are taken where they lie.
        """
        own = {1 + i: node for i, node in enumerate(self.graph.nodes) if self.maps[1 + i] is None}
        means = {
            value: _means(shared[node.inputs[0]], self._map(node.inputs[0]), stride, counts)
            for value, node in own.items()
            if isinstance(node.layer, nn.GlobalAvgPool2d) and node.inputs[0] in shared
        }
        rest = {value: node for value, node in own.items() if value not in means}
        cut = {v for node in rest.values() for v in node.inputs if v in shared}
        ys, xs = np.divmod(np.arange(counts[0] * counts[1]), counts[1])
        size = max([1, *(prod(self._map(v).shape) for v in cut)])
        step = max(1, _CHUNK_VALUES // size)
        found = []
        for first in range(0, len(ys), step):
            rows, columns = ys[first : first + step] * stride, xs[first : first + step] * stride
            live = {v: _cut(shared[v], self._map(v), stride, rows, columns) for v in cut}
            live |= {v: mean[first : first + step] for v, mean in means.items()}
            for value, node in rest.items():
                live[value], _ = node.layer.forward(*(live[v] for v in node.inputs), context=_CONTEXT)
            found.append(live[self.graph.outputs[0]])
        return np.concatenate(found).reshape(*counts, -1)

    def _map(self, value: int) -> _Map:
        found = self.maps[value]
        assert found is not None
        return found

    def largest(self, stride: int, counts: tuple[int, int]) -> int:
        """Elements of the largest value that :meth:`forward` makes."""
        reach = self.reach(stride, counts)
        return max(prod(_shape(m, stride, reach)) for m in self.maps if m is not None)

    def macs(self, stride: int, counts: tuple[int, int]) -> int:
        """Multiply-adds of :meth:`forward`, counted as the layers count theirs."""
        reach, total = self.reach(stride, counts), 0
        shapes = self.graph.shapes((1, *self.window, self.channels))
        for i, node in enumerate(self.graph.nodes):
            after = self.maps[1 + i]
            if after is None:
                total += counts[0] * counts[1] * node.layer.macs(*(shapes[v] for v in node.inputs))
            else:
                total += node.layer.macs(*(_input_shape(self._map(v), after, stride, reach) for v in node.inputs))
        return total


def plan(graph: nn.Graph, window: tuple[int, int], channels: int = 3) -> SharedPlan:
    """The plan for a classifier of images of ``window`` (h, w); NotShareable where it would share no arithmetic."""
    if graph.n_inputs != 1 or len(graph.outputs) != 1:
        raise NotShareable(
            f"the network has {graph.n_inputs} inputs and {len(graph.outputs)} outputs, expected one each"
        )
    maps: list[_Map | None] = [_Map((*window, channels), (1, 1))]
    shapes: list[Shape] = graph.shapes((1, *window, channels))
    reasons = []
    for i, node in enumerate(graph.nodes):
        before = [m for v in node.inputs if (m := maps[v]) is not None]
        shape = shapes[1 + i]
        if len(before) < len(node.inputs):
            maps.append(None)
            continue
        reason = _why_not(node.layer, before, shape)
        if reason or 1 + i in graph.outputs:
            reasons.append(f"{node.name} {reason or 'is the output'}")
            maps.append(None)
        else:
            strides = before[0].strides
            step = getattr(_window_of(node.layer), "stride", (1, 1))
            maps.append(_Map((shape[1], shape[2], shape[3]), (strides[0] * step[0], strides[1] * step[1])))
    found = SharedPlan(graph, window, channels, tuple(maps), reasons[0])
    if not any(m is not None and node.layer.macs(*(shapes[v] for v in node.inputs))
               for m, node in zip(maps[1:], graph.nodes, strict=True)):  # fmt: skip
        raise NotShareable(reasons[0])
    return found


def _window_of(layer: Layer) -> object:
    """The layer that has kernel, stride and padding."""
    return layer.conv if isinstance(layer, nn.FoldedConv2d) else layer


def _why_not(layer: Layer, before: list[_Map], shape: Shape) -> str:
    """Why a layer's result is not shared, or nothing."""
    if any(m.strides != before[0].strides for m in before):
        return f"joins values of different strides {[m.strides for m in before]}"
    if isinstance(layer, nn.FoldedConv2d | nn.Conv2d):
        padding = layer.conv.padding if isinstance(layer, nn.FoldedConv2d) else layer.padding
        if any(side for axis in padding for side in axis):
            return f"pads with zeros {padding}: values at a window's edge are its own"
        if len(before) > 1 and layer.conv.stride != (1, 1):  # type: ignore[union-attr]
            return "adds a residual of another stride"
        return ""
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        if any(layer.padding):
            return f"pads {layer.padding}: values at a window's edge are its own"
        axes = zip(before[0].shape[:2], shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True)
        over = max((out - 1) * step + spread * (kernel - 1) + 1 - size for size, out, kernel, step, spread in axes)
        return f"hangs over the window's edge by {over} (ceil_mode)" if over > 0 else ""
    if isinstance(layer, nn.GlobalAvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear):
        return "makes a vector of each window"
    return "" if isinstance(layer, _ANY_PLACE) else f"is a {type(layer).__name__}, not known to be shareable"


def _residues(stride: int, t: int) -> int:
    """How many residues modulo ``t`` multiples of ``stride`` have."""
    return t // gcd(stride, t)


def _shape(view: _Map, stride: int, reach: tuple[int, int]) -> tuple[int, int, int, int]:
    """(fragments, h, w, c) of a shared value: every window of a fragment sees ``view.shape`` of it."""
    (ty, tx), (h, w, c) = view.strides, view.shape
    return _residues(stride, ty) * _residues(stride, tx), h + reach[0] // ty - 1, w + reach[1] // tx - 1, c


def _input_shape(before: _Map, after: _Map, stride: int, reach: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape a layer reads: its input's map, cut for the fragments of its result."""
    if before.strides == after.strides:
        return _shape(before, stride, reach)
    h, w = (
        size + (r // new - 1) * (new // old)
        for size, r, new, old in zip(before.shape[:2], reach, after.strides, before.strides, strict=True)
    )
    return _shape(after, stride, reach)[0], h, w, before.shape[2]


def _split(x: Array, before: _Map, after: _Map, stride: int, reach: tuple[int, int]) -> Array:
    """The input of a striding layer, cut for each fragment of its result."""
    n, h, w, c = _input_shape(before, after, stride, reach)
    places = []
    for t, t2 in zip(before.strides, after.strides, strict=True):
        starts = range(0, t2, gcd(stride, t2))
        places.append([(r % t // gcd(stride, t), r // t) for r in starts])
    columns = _residues(stride, before.strides[1])
    y: Array = K.empty((n, h, w, c))
    at = 0
    for fy, dy in places[0]:
        for fx, dx in places[1]:
            y[at] = x[fy * columns + fx, dy : dy + h, dx : dx + w]
            at += 1
    return y


def _cut(y: Array, view: _Map, stride: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Array:
    """What the windows that start at (rows, columns) see of a shared value: (n, h, w, c)."""
    (ty, tx), (h, w, c) = view.strides, view.shape
    fragment = rows % ty // gcd(stride, ty) * _residues(stride, tx) + columns % tx // gcd(stride, tx)
    out: Array = K.empty((len(rows), h, w, c))
    for i, (f, top, left) in enumerate(zip(fragment, rows // ty, columns // tx, strict=True)):
        out[i] = y[f, top : top + h, left : left + w]
    return out


def _means(y: Array, view: _Map, stride: int, counts: tuple[int, int]) -> Array:
    """The mean over each window's part of a shared value, (windows, c), without a copy of the parts."""
    (ty, tx), (h, w, c) = view.strides, view.shape
    out: Array = K.empty((*counts, c))
    rows, columns = _residues(stride, ty), _residues(stride, tx)  # so many windows on, they are in the same fragment
    for i in range(min(rows, counts[0])):
        for j in range(min(columns, counts[1])):
            fragment = i * stride % ty // gcd(stride, ty) * columns + j * stride % tx // gcd(stride, tx)
            part = y[fragment : fragment + 1, i * stride // ty :, j * stride // tx :]
            steps = stride * rows // ty, stride * columns // tx
            # A mean of means: windows overlap, and one axis after the other reads h + w values for each, not h * w.
            mean = K.avg_pool2d(np.ascontiguousarray(part), (h, 1), stride=(steps[0], 1))
            mean = K.avg_pool2d(mean, (1, w), stride=(1, steps[1]))[0]
            target = out[i::rows, j::columns]
            target[...] = mean[: target.shape[0], : target.shape[1]]
    return out.reshape(-1, c)


def _apply(
    layer: Layer, xs: list[Array], before: list[_Map], after: _Map, stride: int, reach: tuple[int, int]
) -> Array:
    shape = _shape(after, stride, reach)
    # Maps of one fragment are cut only where the layer would make more than is wanted.
    whole = before[0].strides == after.strides or (
        len(xs[0]) == shape[0] == 1 and _reads_all(layer, xs[0].shape, shape)
    )
    x = xs[0] if whole else _split(xs[0], before[0], after, stride, reach)
    if isinstance(layer, nn.MaxPool2d):  # not by the layer: its ceil_mode would add windows at the tile's edge
        return K.max_pool2d(x, layer.kernel_size, stride=layer.stride, dilation=layer.dilation)[0]
    if isinstance(layer, nn.AvgPool2d):
        return K.avg_pool2d(x, layer.kernel_size, stride=layer.stride)
    return layer.forward(x, *xs[1:], context=_CONTEXT)[0]


def _reads_all(layer: Layer, have: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a layer makes just ``shape`` of all of its input, so that nothing need be cut off before."""
    window = _window_of(layer)
    kernel, step, spread = (getattr(window, name, (1, 1)) for name in ("kernel_size", "stride", "dilation"))
    made = [(have[1 + a] - spread[a] * (kernel[a] - 1) - 1) // step[a] + 1 for a in (0, 1)]
    return made == [shape[1], shape[2]]
