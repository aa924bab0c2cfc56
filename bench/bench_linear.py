"""Fully connected layers beside torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work

#: (rows, inputs, outputs)
SHAPES = ((128, 512, 1000), (32, 512, 10), (64, 9216, 4096), (1, 9216, 4096), (1, 512, 1000))


def cases(rivals: set[str]) -> Iterator[Case]:
    """Classifier heads: forward and both gradients."""
    for m, c, k in SHAPES:
        rng = np.random.default_rng(0)
        x, w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((m, c), (c, k), (m, k)))
        dw = K.empty(w.shape)
        work: dict[str, dict[str, Work]] = {
            "fwd": {"medmpi": lambda: K.linear(x, w)},
            "bwd data": {"medmpi": lambda: K.linear_backward_data(dy, w)},
            "bwd weight": {"medmpi": lambda: K.linear_backward_weight(dy, x, out=dw)},
        }
        if "torch" in rivals:
            import torch

            tx, tdy = torch.from_numpy(x), torch.from_numpy(dy)
            tw = torch.from_numpy(w).t().contiguous()  # torch keeps (outputs, inputs)
            tdw = torch.zeros_like(tw)
            work["fwd"]["torch"] = lambda: torch.nn.functional.linear(tx, tw)
            work["bwd data"]["torch"] = lambda: tdy @ tw
            work["bwd weight"]["torch"] = lambda: tdw.addmm_(tdy.t(), tx)
        for direction, contenders in work.items():
            extra = {"group": f"linear {direction}"}
            yield Case(f"{m}x{c}x{k} {direction}", contenders, flops=2.0 * m * c * k, extra=extra)
