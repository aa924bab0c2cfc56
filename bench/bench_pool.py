"""Max and average pooling, forward and backward, beside torch in both layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work

#: (images, window, stride, padding)
SHAPES = (((32, 32, 32, 64), 2, 2, 0), ((8, 112, 112, 64), 3, 2, 1), ((8, 28, 28, 192), 3, 1, 1))


def cases(rivals: set[str]) -> Iterator[Case]:
    """Windows of ResNet's stem, U-Net and Inception."""
    for shape, window, stride, padding in SHAPES:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        kw: dict[str, Any] = {"stride": stride, "padding": padding}
        contenders: dict[str, dict[str, Work]] = {
            "max": {"medmpi": lambda: K.max_pool2d(x, window, **kw)},
            "avg": {"medmpi": lambda: K.avg_pool2d(x, window, **kw)},
        }
        if "torch" in rivals:
            import torch

            for name, fmt in (("torch_nchw", torch.contiguous_format), ("torch_nhwc", torch.channels_last)):
                tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
                contenders["max"][name] = lambda tx=tx: torch.nn.functional.max_pool2d(tx, window, **kw)
                contenders["avg"][name] = lambda tx=tx: torch.nn.functional.avg_pool2d(tx, window, **kw)
        moved = 4.0 * x.size * (1 + 1 / stride**2)
        name = "x".join(map(str, shape)) + f" {window}/{stride}"
        for kind, work in contenders.items():
            yield Case(f"{kind} {name}", work, bytes=moved, extra={"group": f"{kind} pool"})
