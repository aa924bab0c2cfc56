"""What is bound by a CUDA device's memory: batch normalisation, activation, pooling, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from medmpi import kernels as K

from .device import DeviceCase, Values, Work, sets_for

SHAPES = ((256, 32, 32, 64), (64, 56, 56, 64), (64, 14, 14, 256), (16, 128, 128, 64))
PARAMETERS = 25_557_032  # of ResNet-50

Maker = Callable[..., Work]


def cases(rivals: set[str], precisions: list[str], only: str) -> Iterator[DeviceCase]:
    """Arrays are float32 here and for torch (channels_last); ``precisions`` does not matter."""
    values = Values()
    for shape in SHAPES:
        for name, passes, arrays, ours, theirs in OPERATIONS:
            label = f"{name} {'x'.join(map(str, shape))}"
            if only in label:
                yield case(label, name, shape, passes, arrays, ours, theirs if "torch" in rivals else None, values)
    for name, passes, arrays, ours, theirs in OPTIMIZERS:
        label = f"{name} {PARAMETERS}"
        if only in label:
            yield case(label, name, (PARAMETERS,), passes, arrays, ours, theirs if "torch" in rivals else None, values)


def case(
    label: str,
    name: str,
    shape: tuple[int, ...],
    passes: float,
    arrays: int,
    ours: Maker,
    theirs: Maker | None,
    values: Values,
) -> DeviceCase:
    """``passes``: times an array of the shape is read or written; ``arrays``: how many are made."""
    size = 4.0 * float(np.prod(shape))
    sets = [[values.device(*shape) for _ in range(arrays)] for _ in range(sets_for(size * passes))]
    contenders = {"medmpi": [ours(*a) for a in sets]}
    if theirs is not None:
        contenders["torch_nhwc"] = [theirs(*(torch_of(x) for x in a)) for a in sets]
    return DeviceCase(label, name, "fp32", contenders, 0.0, size * passes)


def torch_of(array: Any) -> Any:
    """torch's copy, images channels_last."""
    import torch

    copy = torch.as_tensor(K.to_host(array)).cuda()
    return copy.permute(0, 3, 1, 2) if copy.ndim == 4 else copy


def channels(x: Any) -> tuple[Any, Any]:
    """A factor and a shift for each channel."""
    c = x.shape[-1]
    return K.to_device(np.linspace(0.5, 1.5, c, dtype=np.float32)), K.to_device(np.zeros(c, np.float32))


def our_batch_norm(x: Any) -> Work:
    gamma, beta = channels(x)
    out = K.empty(x.shape, device="cuda")
    return lambda: K.batch_norm(x, gamma, beta, relu=True, out=out)


def torch_batch_norm(x: Any) -> Work:
    import torch

    gamma, beta = torch.ones(x.shape[1], device="cuda"), torch.zeros(x.shape[1], device="cuda")
    norm = torch.nn.functional.batch_norm
    return lambda: torch.relu(norm(x, None, None, gamma, beta, training=True))


def our_relu(x: Any) -> Work:
    out = K.empty(x.shape, device="cuda")
    return lambda: K.relu(x, out=out)


def torch_relu(x: Any) -> Work:
    import torch

    return lambda: torch.relu(x)


def our_add_relu(x: Any, z: Any) -> Work:
    out = K.empty(x.shape, device="cuda")
    return lambda: K.add(x, z, relu=True, out=out)


def torch_add_relu(x: Any, z: Any) -> Work:
    import torch

    return lambda: torch.relu(x + z)


def our_max_pool(x: Any) -> Work:
    return lambda: K.max_pool2d(x, 2)


def torch_max_pool(x: Any) -> Work:
    import torch

    return lambda: torch.nn.functional.max_pool2d(x, 2, return_indices=True)


def our_average(x: Any) -> Work:
    return lambda: K.global_avg_pool2d(x)


def torch_average(x: Any) -> Work:
    return lambda: x.mean((2, 3))


def our_adam(value: Any, grad: Any, m: Any, v: Any) -> Work:
    m[...], v[...] = 0.0, 0.0
    return lambda: K.adam_step(value, grad, m, v, lr=1e-3, step=1)


def torch_adam(value: Any, grad: Any, m: Any, v: Any) -> Work:
    import torch

    value = value.requires_grad_()
    value.grad = grad
    optimizer = torch.optim.Adam([value], lr=1e-3, fused=True, capturable=True)
    return optimizer.step


# name, passes over an array of the shape, arrays made, ours, torch's
OPERATIONS: tuple[tuple[str, float, int, Maker, Maker], ...] = (
    ("batch_norm+relu", 3.0, 1, our_batch_norm, torch_batch_norm),
    ("relu", 2.0, 1, our_relu, torch_relu),
    ("add+relu", 3.0, 2, our_add_relu, torch_add_relu),
    ("max_pool2d", 1.5, 1, our_max_pool, torch_max_pool),
    ("global_avg_pool2d", 1.0, 1, our_average, torch_average),
)
OPTIMIZERS: tuple[tuple[str, float, int, Maker, Maker], ...] = (("adam_step", 7.0, 4, our_adam, torch_adam),)
