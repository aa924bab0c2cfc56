"""A fused graph is the same network: same results within float32's rounding, fewer passes over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medmpi import kernels, models, nn

BOUND = 1e-5  # of a tensor's largest gradient


def step(graph: nn.Graph, x: Any, labels: Any) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Loss, gradients and buffers of one training step."""
    parameters = nn.Parameters(graph, seed=0)
    parameters.zero_grad()
    (logits,), saved = graph.forward(x, context=nn.Context(train=True))
    loss, dlogits = nn.CrossEntropy()(logits, labels)
    graph.backward((dlogits,), saved)
    gradients = {f"{node.name}.{key}": g.copy() for node in graph.nodes for key, g in node.layer.g.items()}
    buffers = {f"{node.name}.{key}": b.copy() for node in graph.nodes for key, b in node.layer.b.items()}
    return loss, gradients, buffers


@pytest.mark.parametrize(
    ("name", "size", "width"), [("resnet18", 64, 16), ("mini_xception", 64, None), ("unet", 64, 16)]
)
def test_one_step(name: str, size: int, width: int | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, size, size, 3), dtype=np.float32)
    labels = rng.integers(0, 4, x.shape[:3] if name == "unet" else 4)

    def build() -> nn.Graph:
        options: dict[str, Any] = {} if width is None else {"width": width}
        return models.build(name, classes=4, channels=3, image_size=size, **options)

    plain, fused = build().unfuse(), build().fuse()
    assert len(fused) < len(plain)
    loss, gradients, buffers = step(plain, x, labels)
    fused_loss, fused_gradients, fused_buffers = step(fused, x, labels)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == fused_gradients.keys()
    for key, gradient in gradients.items():
        largest = max(np.abs(gradient).max(), 1e-6)
        np.testing.assert_allclose(fused_gradients[key], gradient, rtol=0, atol=BOUND * largest, err_msg=key)
    for key, buffer in buffers.items():
        np.testing.assert_allclose(fused_buffers[key], buffer, rtol=1e-5, atol=1e-6, err_msg=key)


def test_large_results_get_their_moments_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = models.build("resnet18", classes=4, channels=3, image_size=64, width=16).fuse()
    nn.Parameters(graph, seed=0)
    normalised = [n.name for n in graph.nodes if isinstance(n.layer, nn.Conv2d) and n.layer.normalised]
    assert len(normalised) == sum(isinstance(n.layer, nn.BatchNorm2d) for n in graph.nodes)
    sizes = []
    statistics = kernels.batch_norm_statistics

    def noting(x: Any) -> Any:
        sizes.append(x.size)
        return statistics(x)

    monkeypatch.setattr(kernels, "batch_norm_statistics", noting)
    context = nn.Context(train=True)
    graph.forward(np.ones((4, 64, 64, 3), np.float32), context=context)
    assert sizes
    assert max(sizes) < 1 << 18
    assert context.moments == {}


def test_noted_moments_are_those_of_the_very_array() -> None:
    context = nn.Context()
    y = np.ones((2, 3), np.float32)
    context.note_moments(y, np.zeros(3), np.zeros(3))
    assert context.noted_moments(y.copy()) is None
    assert context.noted_moments(y) is not None
    assert context.noted_moments(y) is None
    context.note_moments(y, np.zeros(3), np.zeros(3))
    key = id(y)
    del y
    (note,) = context.moments.values()
    assert note[0]() is None, "the note keeps no memory"
    assert key in context.moments
