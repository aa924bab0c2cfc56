"""Convolutions of the models' own layers: forward, backward-data and backward-weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work


@dataclass(frozen=True)
class Layer:
    """A convolution with square filters; padding keeps the size at stride 1."""

    name: str
    group: str
    n: int
    c: int
    k: int
    size: int
    r: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.r // 2

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.r) // self.stride + 1

    @property
    def flops(self) -> float:
        return 2.0 * self.n * self.out_size**2 * self.k * self.c // self.groups * self.r**2


LAYERS = (
    Layer("r18 64-64@32", "3x3 s1", 32, 64, 64, 32),
    Layer("r18 128-128@16", "3x3 s1", 32, 128, 128, 16),
    Layer("r18 256-256@8", "3x3 s1", 32, 256, 256, 8),
    Layer("r18 512-512@4", "3x3 s1", 32, 512, 512, 4),
    Layer("r50 64-64@56", "3x3 s1", 8, 64, 64, 56),
    Layer("r50 128-128@28", "3x3 s1", 8, 128, 128, 28),
    Layer("r50 256-256@14", "3x3 s1", 8, 256, 256, 14),
    Layer("r50 512-512@7", "3x3 s1", 8, 512, 512, 7),
    Layer("unet 64-64@128", "3x3 s1", 2, 64, 64, 128),
    Layer("unet 128-128@64", "3x3 s1", 2, 128, 128, 64),
    Layer("incep 96-128@28", "3x3 s1", 8, 96, 128, 28),
    Layer("incep 160-320@14", "3x3 s1", 8, 160, 320, 14),
    Layer("r18 64-128@32 s2", "3x3 s2", 32, 64, 128, 32, 3, 2),
    Layer("r18 128-256@16 s2", "3x3 s2", 32, 128, 256, 16, 3, 2),
    Layer("r18 256-512@8 s2", "3x3 s2", 32, 256, 512, 8, 3, 2),
    Layer("stem 3-64@32", "stem", 32, 3, 64, 32),
    Layer("stem 1-64@128", "stem", 2, 1, 64, 128),
    Layer("stem 3-64@224 7x7 s2", "stem", 8, 3, 64, 224, 7, 2),
    Layer("incep 16-32@28 5x5", "5x5", 8, 16, 32, 28, 5),
    Layer("r50 64-256@56 1x1", "1x1", 8, 64, 256, 56, 1),
    Layer("r50 256-64@56 1x1", "1x1", 8, 256, 64, 56, 1),
    Layer("r50 512-128@28 1x1", "1x1", 8, 512, 128, 28, 1),
    Layer("r50 256-1024@14 1x1", "1x1", 8, 256, 1024, 14, 1),
    Layer("r50 512-2048@7 1x1", "1x1", 8, 512, 2048, 7, 1),
    Layer("r50 2048-512@7 1x1", "1x1", 8, 2048, 512, 7, 1),
    Layer("incep 192-64@28 1x1", "1x1", 8, 192, 64, 28, 1),
    Layer("unet 64-2@128 1x1", "1x1", 2, 64, 2, 128, 1),
    Layer("r50 256-512@56 1x1 s2", "1x1", 8, 256, 512, 56, 1, 2),
    Layer("r18 64-128@32 1x1 s2", "1x1", 32, 64, 128, 32, 1, 2),
    Layer("dw 128@32", "depthwise", 32, 128, 128, 32, 3, 1, 128),
    Layer("dw 64@16", "depthwise", 32, 64, 64, 16, 3, 1, 64),
    Layer("dw 512@14", "depthwise", 8, 512, 512, 14, 3, 1, 512),
    Layer("dw 64@112 s2", "depthwise s2", 8, 64, 64, 112, 3, 2, 64),
    Layer("dw 128@56 s2", "depthwise s2", 8, 128, 128, 56, 3, 2, 128),
    Layer("dw 512@14 s2", "depthwise s2", 8, 512, 512, 14, 3, 2, 512),
)


def cases(rivals: set[str]) -> Iterator[Case]:
    """Three cases a layer; torch runs in both of its layouts, the better one is the rival."""
    for layer in LAYERS:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((layer.n, layer.size, layer.size, layer.c), dtype=np.float32)
        w = rng.standard_normal((layer.r, layer.r, layer.c // layer.groups, layer.k), dtype=np.float32)
        dy = rng.standard_normal((layer.n, layer.out_size, layer.out_size, layer.k), dtype=np.float32)
        kw = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
        work: dict[str, dict[str, Work]] = {
            "fwd": {"medmpi": lambda: K.conv2d(x, w, **kw)},
            "bwd data": {"medmpi": lambda: K.conv2d_backward_data(dy, w, x_shape=x.shape, **kw)},
            "bwd weight": {"medmpi": lambda: K.conv2d_backward_weight(dy, x, weight_shape=w.shape, **kw)},
        }
        if "torch" in rivals:
            add_torch(work, layer, x, w, dy)
        for direction, contenders in work.items():
            group = f"{layer.group} {direction}"
            yield Case(f"{layer.name} {direction}", contenders, flops=layer.flops, extra={"group": group})


def add_torch(work: dict[str, dict[str, Work]], layer: Layer, x: Any, w: Any, dy: Any) -> None:
    """torch's convolution and its two gradients, contiguous (nchw) and channels_last (nhwc)."""
    import torch

    pair = lambda a: [a, a]  # noqa: E731
    for name, fmt in (("torch_nchw", torch.contiguous_format), ("torch_nhwc", torch.channels_last)):
        tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
        tw = torch.from_numpy(w).permute(3, 2, 0, 1).contiguous(memory_format=fmt)
        tdy = torch.from_numpy(dy).permute(0, 3, 1, 2).contiguous(memory_format=fmt)

        def forward(tx: Any = tx, tw: Any = tw) -> Any:
            with torch.no_grad():
                return torch.nn.functional.conv2d(
                    tx, tw, stride=layer.stride, padding=layer.padding, groups=layer.groups
                )

        def backward(mask: list[bool], tx: Any = tx, tw: Any = tw, tdy: Any = tdy) -> Any:
            stride, padding = pair(layer.stride), pair(layer.padding)
            return torch.ops.aten.convolution_backward(
                tdy, tx, tw, None, stride, padding, [1, 1], False, [0, 0], layer.groups, mask
            )

        work["fwd"][name] = forward
        work["bwd data"][name] = lambda backward=backward: backward([True, False, False])
        work["bwd weight"][name] = lambda backward=backward: backward([False, True, False])
