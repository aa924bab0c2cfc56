"""Convolutions of the models' own layers on a CUDA device, at a device's batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from medmpi import kernels as K

from .bench_conv2d import LAYERS, Layer
from .device import DeviceCase, Values, Work, sets_for

BATCH = 8  # times the batch that a core is measured with
DIRECTIONS = ("fwd", "bwd data", "bwd weight")


def cases(rivals: set[str], precisions: list[str], only: str, batch: int = BATCH) -> Iterator[DeviceCase]:
    """Three cases a layer and precision; torch runs channels_last (nhwc) and contiguous (nchw)."""
    values = Values()
    for base in LAYERS:
        layer = replace(base, n=base.n * batch)
        if not any(only in f"{layer.name} {direction}" for direction in DIRECTIONS):
            continue
        x_shape = (layer.n, layer.size, layer.size, layer.c)
        y_shape = (layer.n, layer.out_size, layer.out_size, layer.k)
        w_shape = (layer.r, layer.r, layer.c // layer.groups, layer.k)
        nbytes = 4.0 * sum(int(np.prod(shape)) for shape in (x_shape, y_shape, w_shape))
        shapes = (x_shape, w_shape, y_shape)
        sets = [tuple(values.device(*shape) for shape in shapes) for _ in range(sets_for(nbytes))]
        for precision in precisions:
            work = {
                direction: {"medmpi": [ours(layer, direction, *arrays) for arrays in sets]} for direction in DIRECTIONS
            }
            if "torch" in rivals:
                for name, channels_last in (("torch_nhwc", True), ("torch_nchw", False)):
                    converted = [torch_arrays(arrays, precision, channels_last) for arrays in sets]
                    for direction in DIRECTIONS:
                        work[direction][name] = [torch_work(layer, direction, precision, *a) for a in converted]
            for direction, contenders in work.items():
                name, group = f"{layer.name} {direction}", f"{layer.group} {direction}"
                error = error_of(layer, direction, *sets[0]) if "torch" in rivals else None
                yield DeviceCase(name, group, precision, contenders, layer.flops, nbytes, error)


def window(layer: Layer) -> dict[str, int]:
    return {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}


def ours(layer: Layer, direction: str, x: Any, w: Any, dy: Any) -> Work:
    """A call into a result of its own; gradients of weights add up in it."""
    kw: dict[str, Any] = window(layer)
    if direction == "fwd":
        out = K.empty(dy.shape, device="cuda")
        return lambda: K.conv2d(x, w, **kw, out=out)
    if direction == "bwd data":
        out = K.empty(x.shape, device="cuda")
        return lambda: K.conv2d_backward_data(dy, w, x_shape=x.shape, **kw, out=out)
    out = K.empty(w.shape, device="cuda")
    out[...] = 0.0
    return lambda: K.conv2d_backward_weight(dy, x, weight_shape=w.shape, **kw, out=out)


def torch_arrays(arrays: tuple[Any, ...], precision: str, channels_last: bool) -> tuple[Any, ...]:
    """x, weight and dy as torch wants them."""
    import torch

    x, w, dy = (torch.as_tensor(K.to_host(a)).cuda() for a in arrays)
    fmt = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    turned = (x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), dy.permute(0, 3, 1, 2))
    return tuple(a.to(dtype).contiguous(memory_format=fmt) for a in turned)


def torch_work(layer: Layer, direction: str, precision: str, x: Any, w: Any, dy: Any) -> Work:
    """torch's convolution or one of its gradients, algorithms chosen by measurement."""
    import torch

    pair = lambda a: [a, a]  # noqa: E731
    mask = [direction == "bwd data", direction == "bwd weight", False]

    def run() -> Any:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.no_grad():
            if direction == "fwd":
                return torch.nn.functional.conv2d(x, w, None, **window(layer))
            stride, padding = pair(layer.stride), pair(layer.padding)
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, [1, 1], False, [0, 0], layer.groups, mask
            )

    return run


def error_of(layer: Layer, direction: str, x: Any, w: Any, dy: Any) -> Any:
    """Our result's distance from torch's in float64 over its norm, on the first images."""

    def error() -> float:

        n = min(4, layer.n)
        few = tuple(K.to_device(np.ascontiguousarray(K.to_host(a)[:n])) for a in (x, dy))
        arrays = (few[0], w, few[1])
        kw: dict[str, Any] = window(layer)
        if direction == "fwd":
            got = K.conv2d(few[0], w, **kw)
        elif direction == "bwd data":
            got = K.conv2d_backward_data(few[1], w, x_shape=few[0].shape, **kw)
        else:
            got = K.conv2d_backward_weight(few[1], few[0], weight_shape=w.shape, **kw)
        wide = tuple(a.double() for a in torch_arrays(arrays, "fp32", False))
        want = torch_work(layer, direction, "fp32", *wide)()
        if direction != "fwd":
            want = want[0 if direction == "bwd data" else 1]
        turned = want.permute(2, 3, 1, 0) if direction == "bwd weight" else want.permute(0, 2, 3, 1)
        expected = turned.cpu().numpy()
        return float(np.linalg.norm(K.to_host(got) - expected) / np.linalg.norm(expected))

    return error
