"""Fully connected layers on a CUDA device: the models' classifiers and squares that fill it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medmpi import kernels as K

from .device import DeviceCase, Values, Work, sets_for

SIZES = ((64, 2048, 1000), (256, 512, 10), (128, 9216, 4096), (1, 2048, 1000), (4096, 4096, 4096))


def cases(rivals: set[str], precisions: list[str], only: str) -> Iterator[DeviceCase]:
    """x (m, c) by weight (c, k), and both gradients."""
    values = Values()
    for m, c, k in SIZES:
        name = f"{m}x{c}x{k}"
        if not any(only in f"{name} {direction}" for direction in ("fwd", "bwd data", "bwd weight")):
            continue
        nbytes = 4.0 * (m * c + c * k + m * k)
        sets = [(values.device(m, c), values.device(c, k), values.device(m, k)) for _ in range(sets_for(nbytes))]
        for precision in precisions:
            work: dict[str, dict[str, list[Work]]] = {
                "fwd": {"medmpi": [forward(*a) for a in sets]},
                "bwd data": {"medmpi": [backward_data(*a) for a in sets]},
                "bwd weight": {"medmpi": [backward_weight(*a) for a in sets]},
            }
            if "torch" in rivals:
                for direction, contenders in work.items():
                    contenders["torch"] = [torch_work(direction, precision, *a) for a in sets]
            for direction, contenders in work.items():
                yield DeviceCase(f"{name} {direction}", direction, precision, contenders, 2.0 * m * c * k, nbytes)


def forward(x: Any, w: Any, dy: Any) -> Work:
    out = K.empty(dy.shape, device="cuda")
    return lambda: K.linear(x, w, None, out=out)


def backward_data(x: Any, w: Any, dy: Any) -> Work:
    out = K.empty(x.shape, device="cuda")
    return lambda: K.linear_backward_data(dy, w, out=out)


def backward_weight(x: Any, w: Any, dy: Any) -> Work:
    out = K.empty(w.shape, device="cuda")
    out[...] = 0.0
    return lambda: K.linear_backward_weight(dy, x, out=out)


def torch_work(direction: str, precision: str, x: Any, w: Any, dy: Any) -> Work:
    """torch's matrix product for the same."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tx, tw, tdy = (torch.as_tensor(K.to_host(a)).cuda().to(dtype) for a in (x, w, dy))
    a, b = {"fwd": (tx, tw), "bwd data": (tdy, tw.T), "bwd weight": (tx.T, tdy)}[direction]

    def run() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        return a @ b

    return run
