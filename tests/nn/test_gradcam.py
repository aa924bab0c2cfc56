"""Grad-CAM against its definition in torch."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import models, nn
from medmpi.nn import checkpoint
from medmpi.nn.gradcam import last_map


@pytest.mark.parametrize(
    ("name", "node"),
    [("resnet18", "layer4.1.bn2"), ("inception_v1", "inception5b.concat"), ("alexnet", "features.10"),
     ("mini_xception", "exit.bn2"), ("resnet50", "layer4.2.bn3")],
)  # fmt: skip
def test_the_last_map_is_found(name, node):
    graph = models.build(name, classes=2, channels=1, image_size=32).fuse()
    assert graph.nodes[last_map(graph, (1, 32, 32, 1))].name == node


def test_a_segmenter_has_none():
    graph = models.build("unet", classes=2, channels=1, image_size=16, width=2)
    with pytest.raises(ValueError, match="expected a classifier"):
        last_map(graph, (1, 16, 16, 1))


def test_maps_equal_torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    graph = nn.Graph()
    graph.add("conv1", nn.Conv2d(2, 6, 3, padding=1))
    graph.add("bn1", nn.BatchNorm2d(6, relu=True))
    graph.add("conv2", nn.Conv2d(6, 5, 3, stride=2, padding=1, relu=True))
    graph.add("pool", nn.GlobalAvgPool2d())
    graph.add("dropout", nn.Dropout(0.5))
    graph.add("fc1", nn.Linear(5, 7))
    graph.add("relu", nn.ReLU())
    graph.add("fc2", nn.Linear(7, 3))
    nn.Parameters(graph, seed=2)
    state = {k: torch.from_numpy(v) for k, v in checkpoint.state_dict(graph).items()}
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 2), np.float32)
    f = torch.nn.functional
    a = f.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), state["conv1.weight"], state["conv1.bias"], padding=1)
    a = f.relu(f.batch_norm(a, torch.zeros(6), torch.ones(6)))
    maps = f.relu(f.conv2d(a, state["conv2.weight"], state["conv2.bias"], stride=2, padding=1)).requires_grad_()
    y = f.linear(maps.mean((2, 3)), state["fc1.weight"], state["fc1.bias"]).relu()
    y = f.linear(y, state["fc2.weight"], state["fc2.bias"])
    classes = [2, 0, 1]
    y[range(3), classes].sum().backward()
    heat = f.relu((maps * maps.grad.mean((2, 3), keepdim=True)).sum(1, keepdim=True))
    heat = f.interpolate(heat, size=(8, 8), mode="bilinear")[:, 0].detach().numpy()
    top = heat.max((1, 2), keepdims=True)
    found = nn.grad_cam(graph, x, classes)
    np.testing.assert_allclose(found, heat / np.where(top > 0, top, 1), atol=1e-4)
    assert found.max() == pytest.approx(1)
