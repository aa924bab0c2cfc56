"""One optimizer step over a flat parameter array, beside torch's fused optimizers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work


def cases(rivals: set[str]) -> Iterator[Case]:
    """ResNet-18's and a small network's number of parameters."""
    for n in (100_000, 9_400_000):
        rng = np.random.default_rng(0)
        value, grad = (rng.standard_normal(n, dtype=np.float32) for _ in range(2))
        first, second = np.zeros(n, np.float32), np.zeros(n, np.float32)
        sgd = {"lr": 1e-6, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 5e-4}
        adam = {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False}
        work: dict[str, dict[str, Work]] = {
            "SGD": {"medmpi": lambda: K.sgd_step(value, grad, first, **sgd)},
            "Adam": {"medmpi": lambda: K.adam_step(value, grad, first, second, step=10, **adam)},
        }
        if "torch" in rivals:
            import torch

            for name in work:
                p = torch.nn.Parameter(torch.from_numpy(value.copy()))
                p.grad = torch.from_numpy(grad)
                options = {"momentum": 0.9, "weight_decay": 5e-4} if name == "SGD" else {}
                work[name]["torch_fused"] = getattr(torch.optim, name)([p], lr=1e-6, fused=True, **options).step
        for name, contenders in work.items():
            moved = 4.0 * n * (5 if name == "SGD" else 7)
            yield Case(f"{name} {n}", contenders, bytes=moved, extra={"group": name})
