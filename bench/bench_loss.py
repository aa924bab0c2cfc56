"""Softmax cross-entropy, loss and gradient together, beside torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work

#: Rows of a classifier and pixels of a segmentation, and their classes.
SHAPES = ((128, 10), (128, 1000), (2 * 128 * 128, 3))


def cases(rivals: set[str]) -> Iterator[Case]:
    """Mean loss over the rows."""
    for m, k in SHAPES:
        rng = np.random.default_rng(0)
        logits, labels = rng.standard_normal((m, k), dtype=np.float32), rng.integers(0, k, m)
        work: dict[str, Work] = {"medmpi": lambda: K.softmax_cross_entropy(logits, labels)}
        if "torch" in rivals:
            import torch

            z, t = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)

            def step() -> None:
                z.grad = None
                torch.nn.functional.cross_entropy(z, t).backward()  # type: ignore[no-untyped-call]

            work["torch"] = step
        yield Case(f"{m}x{k}", work, bytes=8.0 * m * k, extra={"group": "softmax cross-entropy"})
