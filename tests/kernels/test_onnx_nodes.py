"""The ONNX project's own node tests, two-dimensional cases, through medmpi.kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmpi import kernels as K

LONG_WHEN_EMULATED = True

onnx = pytest.importorskip("onnx", reason="the onnx package carries the node tests")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
CHOSEN = re.compile(
    r"test_(basic_conv|conv_|convtranspose|maxpool|averagepool|globalaveragepool|batchnorm|relu$|gemm|softmax|sce)"
)
#: Other dimensions and types, and models of several nodes that say the same again.
LEFT_OUT = re.compile(r"_1d|_3d|expanded|uint8|_log_prob|NCd1d2d3d4d5")


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def nchw(y: np.ndarray) -> np.ndarray:
    return np.moveaxis(y, -1, 1)


def sides(attributes: dict[str, Any], size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Any:
    """Padding of pads or auto_pad as ((top, bottom), (left, right))."""
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        total = [max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in zip(size, window, stride, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        first, last = (small, large) if auto == "SAME_UPPER" else (large, small)
        return (first[0], last[0]), (first[1], last[1])
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return (top, bottom), (left, right)


def conv(a: dict[str, Any], x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> list[np.ndarray]:
    stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    padding = sides(a, x.shape[2:], w.shape[2:], stride)
    weight = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    y = K.conv2d(nhwc(x), weight, bias, stride=stride, padding=padding, dilation=dilation, groups=a.get("group", 1))
    return [nchw(y)]


def conv_transpose(a: dict[str, Any], x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> list[Any]:
    stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    extra, groups = a.get("output_padding", [0, 0]), a.get("group", 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    full = [s * (n - 1) + r + e for s, n, r, e in zip(stride, x.shape[2:], reach, extra, strict=True)]
    wanted = a.get("output_shape")
    if wanted is None and "auto_pad" in a:
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        padding = sides(a, x.shape[2:], reach, stride)
    else:
        cut = [f - want for f, want in zip(full, wanted, strict=True)]
        # what the full result has too little of is added, what it has too much of is cut, the odd one at the end
        extra = [e + max(-c, 0) for e, c in zip(extra, cut, strict=True)]
        padding = tuple((max(c, 0) // 2, max(c, 0) - max(c, 0) // 2) for c in cut)
    weight = np.ascontiguousarray(w.transpose(2, 3, 1, 0))  # (C, K/groups, R, S) to (R, S, K/groups, C)
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    return [nchw(K.conv_transpose2d(nhwc(x), weight, bias, **options))]


def max_pool(a: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    window, stride, dilation = a["kernel_shape"], a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    padding = sides(a, x.shape[2:], window, stride)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": bool(a.get("ceil_mode", 0))}
    y, indices = K.max_pool2d(nhwc(x), window, **options)
    # ONNX's second output counts in the whole array, rows or columns first
    place = indices.place.astype(np.int64)
    p, q = np.meshgrid(np.arange(y.shape[1]), np.arange(y.shape[2]), indexing="ij")
    row = p[..., None] * stride[0] - padding[0][0] + place // window[1] * dilation[0]
    column = q[..., None] * stride[1] - padding[1][0] + place % window[1] * dilation[1]
    flat = column * x.shape[2] + row if a.get("storage_order", 0) else row * x.shape[3] + column
    image = np.arange(x.shape[0])[:, None, None, None] * x.shape[1] + np.arange(x.shape[1])
    return [nchw(y), nchw(image * x.shape[2] * x.shape[3] + flat)]


def average_pool(a: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    window, stride = a["kernel_shape"], a.get("strides", [1, 1])
    padding = sides(a, x.shape[2:], window, stride)
    if "dilations" in a:  # a depthwise convolution with equal taps
        weight = np.full((*window, 1, x.shape[1]), 1 / np.prod(window), np.float32)
        options = {"stride": stride, "padding": padding, "dilation": a["dilations"], "groups": x.shape[1]}
        return [nchw(K.conv2d(nhwc(x), weight, **options))]
    count = bool(a.get("count_include_pad", 0))
    options = {"stride": stride, "padding": padding, "ceil_mode": bool(a.get("ceil_mode", 0))}
    return [nchw(K.avg_pool2d(nhwc(x), window, count_include_pad=count, **options))]


def batch_normalization(a: dict[str, Any], x: np.ndarray, *state: np.ndarray) -> list[np.ndarray]:
    gamma, beta, mean, var = state
    eps = a.get("epsilon", 1e-5)
    if not a.get("training_mode", 0):
        return [nchw(K.batch_norm_inference(nhwc(x), gamma, beta, mean, var, eps=eps))]
    y, batch_mean, rstd = K.batch_norm(nhwc(x), gamma, beta, eps=eps)
    kept = a.get("momentum", 0.9)
    running_mean = kept * mean + (1 - kept) * batch_mean
    return [nchw(y), running_mean, kept * var + (1 - kept) * (1 / rstd**2 - eps)]


def gemm(a: dict[str, Any], x: np.ndarray, w: np.ndarray, c: np.ndarray | None = None) -> list[np.ndarray]:
    left = np.ascontiguousarray(x.T if a.get("transA") else x) * np.float32(a.get("alpha", 1.0))
    right = np.ascontiguousarray(w.T if a.get("transB") else w)
    shape = (left.shape[0], right.shape[1])
    if c is None:
        return [K.linear(left, right)]
    added = np.ascontiguousarray(np.broadcast_to(c * np.float32(a.get("beta", 1.0)), shape))
    if np.ndim(c) < 2 or c.shape[0] == 1:
        return [K.linear(left, right, np.ascontiguousarray(added[0]))]
    return [K.add(K.linear(left, right), added)]


def softmax(a: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    axis = a.get("axis", -1)
    return [np.moveaxis(K.softmax(np.ascontiguousarray(np.moveaxis(x, axis, -1))), -1, axis)]


def cross_entropy(a: dict[str, Any], x: np.ndarray, labels: np.ndarray, *weight: np.ndarray) -> list[Any]:
    """Ignored labels are left out; without a reduction every row is a batch of its own."""
    w = weight[0] if weight else None
    rows = np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(-1, x.shape[1])
    flat = labels.reshape(-1)
    kept = flat != a["ignore_index"] if "ignore_index" in a else np.ones(flat.shape, bool)
    reduction = a.get("reduction", b"mean").decode()
    if reduction == "none":
        losses = np.zeros(flat.shape, np.float32)
        for i in np.flatnonzero(kept):
            losses[i] = K.softmax_cross_entropy(rows[i : i + 1], flat[i : i + 1], weight=w, denominator=1.0)[0]
        return [losses.reshape(labels.shape)]
    denominator = 1.0 if reduction == "sum" else None
    return [np.float32(K.softmax_cross_entropy(rows[kept], flat[kept], weight=w, denominator=denominator)[0])]


OPERATIONS: dict[str, Callable[..., list[Any]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda _, x: [K.global_avg_pool2d(nhwc(x))[:, :, None, None]],
    "BatchNormalization": batch_normalization,
    "Relu": lambda _, x: [K.relu(x)],
    "Gemm": gemm,
    "Softmax": softmax,
    "SoftmaxCrossEntropyLoss": cross_entropy,
}
CASES = sorted(p.name for p in DATA.glob("test_*") if CHOSEN.match(p.name) and not LEFT_OUT.search(p.name))


def tensors(case: str, kind: str) -> list[np.ndarray]:
    folder = DATA / case / "test_data_set_0"
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())).copy() for p in files]


def test_the_cases_are_there():
    assert len(CASES) >= 70
    assert {onnx.load(DATA / c / "model.onnx").graph.node[0].op_type for c in CASES} == set(OPERATIONS)


@pytest.mark.parametrize("case", CASES)
def test_node(case):
    node = onnx.load(DATA / case / "model.onnx").graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    results = OPERATIONS[node.op_type](attributes, *tensors(case, "input"))
    expected = tensors(case, "output")
    assert len(results) >= len(expected)
    for result, want in zip(results, expected, strict=False):
        assert np.shape(result) == want.shape
        np.testing.assert_allclose(result, want, rtol=1e-3, atol=1e-6)  # the tolerances of ONNX's own runner
