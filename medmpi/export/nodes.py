"""Each layer as ONNX nodes: from (N, H, W, C) and filters (R, S, C/groups, K) to (N, C, H, W) and (K, C/groups, R, S).

Only standard operators with explicit paddings are written: how runtimes read ``ceil_mode`` has differed over versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from medmpi import nn
from medmpi.nn.layer import Layer, Shape


class NotExportable(ValueError):
    """A layer has no form in ONNX here; the message names it."""


@dataclass
class Writer:
    """Collects nodes and constants; every name is unique because node names are."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A stored array; returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """An operator; returns its output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output


@dataclass(frozen=True)
class At:
    """Where a layer stands: its name, the names of its inputs, shapes of its inputs and output in our layout."""

    name: str
    inputs: list[str]
    shapes: list[Shape]
    out: Shape


def write_layer(w: Writer, layer: Layer, at: At) -> str:
    """Adds the nodes of a layer and returns the name of its result; NotExportable for an unknown kind."""
    writer = _WRITERS.get(type(layer))
    if writer is None:
        raise NotExportable(f"{at.name}: {type(layer).__name__} cannot be exported")
    return writer(w, layer, at)


def _convolution(w: Writer, conv: Any, weight: NDArray[Any], bias: NDArray[Any] | None, at: At, out: str) -> str:
    (top, bottom), (left, right) = conv.padding
    inputs = [at.inputs[0], w.constant(f"{at.name}.weight", weight)]
    if bias is not None:
        inputs.append(w.constant(f"{at.name}.bias", bias))
    return w.node(
        "Conv", inputs, out, kernel_shape=list(conv.kernel_size), strides=list(conv.stride),
        dilations=list(conv.dilation), group=conv.groups, pads=[top, left, bottom, right],
    )  # fmt: skip


def _tail(w: Writer, at: At, y: str, residual: bool, relu: bool) -> str:
    """What a layer does after its own operator, in one pass with it."""
    if residual:
        y = w.node("Add", [y, at.inputs[1]], f"{at.name}.sum")
    return w.node("Relu", [y], f"{at.name}.relu") if relu else y


def _conv2d(w: Writer, layer: nn.Conv2d, at: At) -> str:
    weight = layer.to_torch("weight", layer.p["weight"])
    return _tail(w, at, _convolution(w, layer, weight, layer.p.get("bias"), at, at.name), False, layer.relu)


def _folded(w: Writer, layer: nn.FoldedConv2d, at: At) -> str:
    weight = layer.conv.to_torch("weight", layer.weight)
    y = _convolution(w, layer.conv, weight, layer.bias, at, at.name)
    return _tail(w, at, y, layer.residual, layer.relu)


def _conv_transpose2d(w: Writer, layer: nn.ConvTranspose2d, at: At) -> str:
    (top, bottom), (left, right) = layer.padding
    inputs = [at.inputs[0], w.constant(f"{at.name}.weight", layer.to_torch("weight", layer.p["weight"]))]
    if layer.bias:
        inputs.append(w.constant(f"{at.name}.bias", layer.p["bias"]))
    return w.node(
        "ConvTranspose", inputs, at.name, kernel_shape=list(layer.kernel_size), strides=list(layer.stride),
        dilations=list(layer.dilation), group=layer.groups, pads=[top, left, bottom, right],
        output_padding=list(layer.output_padding),
    )  # fmt: skip


def _batch_norm(w: Writer, layer: nn.BatchNorm2d, at: At) -> str:
    values = [layer.p["weight"], layer.p["bias"], layer.b["running_mean"], layer.b["running_var"]]
    names = ("weight", "bias", "running_mean", "running_var")
    stored = [w.constant(f"{at.name}.{name}", value) for name, value in zip(names, values, strict=True)]
    y = w.node("BatchNormalization", [at.inputs[0], *stored], at.name, epsilon=layer.eps)
    return _tail(w, at, y, layer.residual, layer.relu)


def _linear(w: Writer, layer: nn.Linear, at: At) -> str:
    inputs = [at.inputs[0], w.constant(f"{at.name}.weight", layer.to_torch("weight", layer.p["weight"]))]
    if layer.bias:
        inputs.append(w.constant(f"{at.name}.bias", layer.p["bias"]))
    return w.node("Gemm", inputs, at.name, transB=1)


def _windows(layer: Any, at: At) -> dict[str, Any]:
    """A pooling's attributes, with the padding at the end that makes exactly as many windows as ours has."""
    ends = []
    for axis in (0, 1):
        size, out = at.shapes[0][1 + axis], at.out[1 + axis]
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        ends.append(max(layer.padding[axis], (out - 1) * layer.stride[axis] + reach - size - layer.padding[axis]))
    return {
        "kernel_shape": list(layer.kernel_size), "strides": list(layer.stride), "pads": [*layer.padding, *ends],
    }  # fmt: skip


def _max_pool(w: Writer, layer: nn.MaxPool2d, at: At) -> str:
    return w.node("MaxPool", at.inputs, at.name, dilations=list(layer.dilation), **_windows(layer, at))


def _avg_pool(w: Writer, layer: nn.AvgPool2d, at: At) -> str:
    window = _windows(layer, at)
    include = bool(layer._window["count_include_pad"])
    if include and window["pads"][2:] != window["pads"][:2]:
        raise NotExportable(f"{at.name}: AvgPool2d with ceil_mode and count_include_pad cannot be exported")
    return w.node("AveragePool", at.inputs, at.name, count_include_pad=int(include), **window)


def _global_avg_pool(w: Writer, layer: nn.GlobalAvgPool2d, at: At) -> str:
    y = w.node("GlobalAveragePool", at.inputs, f"{at.name}.image")
    return w.node("Flatten", [y], at.name, axis=1)


def _adaptive_avg_pool(w: Writer, layer: nn.AdaptiveAvgPool2d, at: At) -> str:
    """Means over windows along rows, then along columns: two matrix products."""
    sizes = at.shapes[0][1:3]
    if sizes == layer.output_size:
        return w.node("Identity", at.inputs, at.name)
    rows, columns = (_means(n, out) for n, out in zip(sizes, layer.output_size, strict=True))
    y = w.node("MatMul", [w.constant(f"{at.name}.rows", rows), at.inputs[0]], f"{at.name}.by_rows")
    return w.node("MatMul", [y, w.constant(f"{at.name}.columns", columns.T)], at.name)


def _means(n: int, out: int) -> NDArray[np.float32]:
    """(out, n): row i averages the inputs of torch's i-th adaptive window."""
    matrix = np.zeros((out, n), np.float32)
    for i in range(out):
        first, last = i * n // out, -(-(i + 1) * n // out)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _flatten(w: Writer, layer: nn.Flatten, at: At) -> str:
    return w.node("Flatten", at.inputs, at.name, axis=1)


def _relu(w: Writer, layer: nn.ReLU, at: At) -> str:
    return w.node("Relu", at.inputs, at.name)


def _dropout(w: Writer, layer: nn.Dropout, at: At) -> str:
    return w.node("Identity", at.inputs, at.name)


def _add(w: Writer, layer: nn.Add, at: At) -> str:
    return w.node("Sum", at.inputs, at.name)


def _concat(w: Writer, layer: nn.Concat, at: At) -> str:
    return w.node("Concat", at.inputs, at.name, axis=1)


def _upsample(w: Writer, layer: nn.Upsample, at: At) -> str:
    scales = w.constant(f"{at.name}.scales", np.array([1, 1, layer.scale, layer.scale], np.float32))
    how: dict[str, str] = (
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if layer.mode == "bilinear"
        else {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    )
    return w.node("Resize", [at.inputs[0], "", scales], at.name, **how)


def _pad(w: Writer, layer: nn.Pad2d, at: At) -> str:
    (top, bottom), (left, right) = layer.padding
    pads = w.constant(f"{at.name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    return w.node("Pad", [at.inputs[0], pads], at.name, mode="constant")


_WRITERS: dict[type[Layer], Callable[[Writer, Any, At], str]] = {
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.Add: _add,
    nn.AvgPool2d: _avg_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.Concat: _concat,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.Dropout: _dropout,
    nn.Flatten: _flatten,
    nn.FoldedConv2d: _folded,
    nn.GlobalAvgPool2d: _global_avg_pool,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.Pad2d: _pad,
    nn.ReLU: _relu,
    nn.Upsample: _upsample,
}
