"""In the steady state a training step asks the system for no memory: no block of the pool, no page."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from medmpi import kernels, models, nn


@pytest.mark.parametrize(("model", "size"), [("resnet18", 32), ("mini_xception", 32), ("unet", 32)])
def test_a_step_asks_for_no_memory(model: str, size: int) -> None:
    graph = models.build(model, classes=3, channels=1, image_size=size, width=16).fuse()
    parameters = nn.Parameters(graph, seed=0)
    optimizer, loss = nn.SGD(parameters, lr=1e-3, momentum=0.9), nn.CrossEntropy()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, size, size, 1), dtype=np.float32)
    labels = rng.integers(0, 3, x.shape[:3] if model == "unet" else 8)

    def step() -> None:
        parameters.zero_grad()
        (logits,), saved = graph.forward(x, context=nn.Context())
        _, dlogits = loss(logits, labels)
        graph.backward((dlogits,), saved)
        optimizer.step()

    for _ in range(3):
        step()
    blocks = kernels.memory_statistics()["fresh_blocks"]
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert kernels.memory_statistics()["fresh_blocks"] == blocks
    assert min(faults) <= 2, f"page faults of the steps: {faults}"  # Python's own objects may need a page now and then
