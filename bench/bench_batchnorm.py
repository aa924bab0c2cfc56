"""Training batch normalisation followed by ReLU, forward and backward, beside torch in both layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work

SHAPES = ((32, 32, 32, 64), (32, 16, 16, 128), (32, 8, 8, 256), (32, 4, 4, 512), (8, 56, 56, 256))


def cases(rivals: set[str]) -> Iterator[Case]:
    """Forward: statistics, normalise, ReLU. Backward: ReLU mask, sums, gradient."""
    for shape in SHAPES:
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        gamma, beta = np.ones(shape[3], np.float32), np.zeros(shape[3], np.float32)
        _, mean, rstd = K.batch_norm(x, gamma, beta, relu=True)
        out = K.empty(shape)
        work: dict[str, dict[str, Work]] = {
            "fwd": {"medmpi": lambda: K.batch_norm(x, gamma, beta, relu=True)},
            # as the graph runs it behind a convolution, whose epilogue has taken the statistics
            "fwd after conv": {"medmpi": lambda: K.batch_norm_apply(x, gamma, beta, mean, rstd, relu=True)},
            "bwd": {"medmpi": lambda: K.batch_norm_backward(dy, x, gamma, mean, rstd, beta=beta, out=out)},
        }
        if "torch" in rivals:
            add_torch(work, x, dy)
        for direction, contenders in work.items():
            passes = {"fwd": 3, "fwd after conv": 2, "bwd": 5}[direction]
            name = "x".join(map(str, shape))
            extra = {"group": f"batch norm + ReLU {direction}"}
            yield Case(f"{name} {direction}", contenders, bytes=4.0 * passes * x.size, extra=extra)
    yield from epilogues()


def epilogues() -> Iterator[Case]:
    """What the statistics cost in the convolution: the same one without them in the place of a rival."""
    for n, side, c, size in ((32, 32, 64, 3), (32, 32, 64, 1), (8, 56, 256, 1)):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, side, side, c), dtype=np.float32)
        weight = rng.standard_normal((size, size, c, c), dtype=np.float32)
        out, moments = K.empty(x.shape), (np.empty(c), np.empty(c))

        def conv(x: Any = x, weight: Any = weight, pad: int = size // 2, out: Any = out, **kw: Any) -> Any:
            return K.conv2d(x, weight, padding=pad, out=out, **kw)

        def taking(conv: Any = conv, moments: Any = moments) -> Any:
            return conv(moments=moments)

        name = f"conv {size}x{size} {n}x{side}x{side}x{c} with statistics"
        yield Case(name, {"medmpi": taking, "without": conv}, extra={"group": "statistics in the epilogue"})


def add_torch(work: dict[str, dict[str, Work]], x: Any, dy: Any) -> None:
    """torch's separate operations, as its autograd runs them."""
    import torch

    c = x.shape[3]
    gamma, beta = torch.ones(c), torch.zeros(c)
    for name, fmt in (("torch_nchw", torch.contiguous_format), ("torch_nhwc", torch.channels_last)):
        tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
        tdy = torch.from_numpy(dy).permute(0, 3, 1, 2).contiguous(memory_format=fmt)

        def forward(tx: Any = tx) -> Any:
            with torch.no_grad():
                y, mean, rstd = torch.native_batch_norm(tx, gamma, beta, None, None, True, 0.1, 1e-5)
                return torch.relu_(y), mean, rstd

        y, mean, rstd = forward()

        def backward(tx: Any = tx, tdy: Any = tdy, y: Any = y, mean: Any = mean, rstd: Any = rstd) -> Any:
            masked = torch.ops.aten.threshold_backward(tdy, y, 0)
            return torch.ops.aten.native_batch_norm_backward(
                masked, tx, gamma, None, None, mean, rstd, True, 1e-5, [True, True, True]
            )

        work["fwd"][name] = work["fwd after conv"][name] = forward
        work["bwd"][name] = backward
