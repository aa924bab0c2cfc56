"""Folding batch normalisation into convolutions changes nothing but rounding; tuning changes nothing but speed."""

from __future__ import annotations

import numpy as np
import pytest
from twin import images, network, step

from medmpi import models, nn

EVALUATE = nn.Context(train=False)


def trained(graph: nn.Graph, *shape: int) -> nn.Graph:
    """The graph with running statistics and scales that are not their initial ones."""
    parameters = nn.Parameters(graph, seed=2)
    rng = np.random.default_rng(0)
    for _, value in parameters.named():
        value += 0.1 * images(rng, *value.shape)
    for _ in range(3):
        graph.forward(images(rng, *shape), context=nn.Context())
    return graph


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("fused", [False, True])
def test_the_small_network(fused: bool) -> None:
    graph = network()
    graph = trained(graph.fuse() if fused else graph, 4, 8, 8, 3)
    x = images(np.random.default_rng(1), 2, 8, 8, 3)
    (expected,), _ = graph.forward(x, context=EVALUATE)
    folded = graph.fold()
    (found,), _ = folded.forward(x, context=EVALUATE)
    close(found, expected)
    kept = [node.name for node in folded.nodes if isinstance(node.layer, nn.BatchNorm2d)]
    assert kept == ["bn4"]  # behind a concatenation: nothing to fold it into
    assert not any(isinstance(node.layer, nn.Conv2d) for node in folded.nodes)


@pytest.mark.parametrize(
    ("model", "size", "channels"),
    [("resnet18", 32, 3), ("resnet50", 32, 3), ("mini_xception", 32, 1), ("inception_v1", 64, 3), ("unet", 32, 1)],
)
def test_models(model: str, size: int, channels: int) -> None:
    width = {} if model == "inception_v1" else {"width": 16}
    graph = models.build(model, classes=3, channels=channels, image_size=size, **width)
    graph = trained(graph.fuse(), 3, size, size, channels)
    folded = graph.fold()
    assert not any(isinstance(node.layer, nn.BatchNorm2d) for node in folded.nodes)
    x = images(np.random.default_rng(1), 2, size, size, channels)
    (expected,), _ = graph.forward(x, context=EVALUATE)
    (found,), _ = folded.forward(x, context=EVALUATE)
    close(found, expected)
    assert folded.output_shape(x.shape) == expected.shape
    assert folded.macs(x.shape) == graph.macs(x.shape)
    chosen = nn.tune(folded, x.shape)
    assert chosen
    assert set(chosen.values()) <= {"direct", "auto"}
    (found,), _ = folded.forward(x, context=EVALUATE)
    close(found, expected)


def test_the_copy_does_not_follow_and_does_not_train() -> None:
    graph = trained(network(), 4, 8, 8, 3)
    folded = graph.fold()
    x = images(np.random.default_rng(1), 2, 8, 8, 3)
    (before,), _ = folded.forward(x, context=EVALUATE)
    for node in graph.nodes:
        for value in node.layer.p.values():
            value += 1
    del graph
    (after,), _ = folded.forward(x, context=EVALUATE)
    np.testing.assert_array_equal(after, before)
    with pytest.raises(ValueError, match="conv1: a folded graph is for inference"):
        step(folded, x, np.zeros(2, int), nn.Context())


def test_values_that_others_read_stay() -> None:
    """A convolution that is an output, or whose result has a second reader, keeps its normalisation apart."""
    graph = nn.Graph()
    conv = graph.add("conv", nn.Conv2d(3, 4, 3))
    norm = graph.add("bn", nn.BatchNorm2d(4), conv)
    graph.outputs = (conv, norm)
    trained(graph, 4, 8, 8, 3)
    x = images(np.random.default_rng(1), 2, 8, 8, 3)
    expected, _ = graph.forward(x, context=EVALUATE)
    found, _ = graph.fold().forward(x, context=EVALUATE)
    for a, b in zip(found, expected, strict=True):
        close(a, b)
