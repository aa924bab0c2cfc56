"""What the tests of nn share: torch's layout, a layer alone in a graph, a small network with everything in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from medmpi import nn
from medmpi.kernels.arrays import Array


def images(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal float32 values."""
    return rng.standard_normal(shape, np.float32)


def alone(layer: nn.Layer, n_inputs: int = 1, seed: int = 0) -> tuple[nn.Graph, nn.Parameters]:
    """A graph of one layer, and its parameters."""
    graph = nn.Graph(n_inputs)
    graph.add("layer", layer, *range(n_inputs))
    return graph, nn.Parameters(graph, seed=seed)


def network() -> nn.Graph:
    """Residuals with and without a convolution, an addition without ReLU, branches, pooling, dropout."""
    g = nn.Graph()
    x = g.add("conv1", nn.Conv2d(3, 8, 3, padding=1, bias=False))
    x = g.add("bn1", nn.BatchNorm2d(8), x)
    a = g.add("relu1", nn.ReLU(), x)
    x = g.add("conv2", nn.Conv2d(8, 8, 3, padding=1), a)
    x = g.add("bn2", nn.BatchNorm2d(8), x)
    x = g.add("add2", nn.Add(), x, a)
    a = g.add("relu2", nn.ReLU(), x)
    x = g.add("conv3", nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), a)
    x = g.add("bn3", nn.BatchNorm2d(16), x)
    b = g.add("down.0", nn.Conv2d(8, 16, 1, stride=2, bias=False), a)
    b = g.add("down.1", nn.BatchNorm2d(16), b)
    x = g.add("add3", nn.Add(), x, b)
    a = g.add("relu3", nn.ReLU(), x)
    b = g.add("branch1", nn.Conv2d(16, 4, 1), a)
    b = g.add("branch1.relu", nn.ReLU(), b)
    c = g.add("branch2", nn.MaxPool2d(3, stride=1, padding=1), a)
    x = g.add("concat", nn.Concat(), b, c)
    x = g.add("bn4", nn.BatchNorm2d(20), x)
    y = g.add("conv5", nn.Conv2d(20, 20, 3, padding=1, groups=20), x)
    y = g.add("bn5", nn.BatchNorm2d(20), y)
    x = g.add("add5", nn.Add(), x, y)
    x = g.add("pool", nn.AvgPool2d(2), x)
    x = g.add("flatten", nn.Flatten(), x)
    x = g.add("fc1", nn.Linear(80, 10, flattened=(2, 2, 20)), x)
    x = g.add("relu4", nn.ReLU(), x)
    x = g.add("dropout", nn.Dropout(0.25), x)
    g.add("fc2", nn.Linear(10, 3), x)
    return g


def step(graph: nn.Graph, x: Array, labels: Any, context: nn.Context) -> tuple[float, Array]:
    """Loss and gradient of the input; parameter gradients are added up in the graph's layers."""
    (logits,), saved = graph.forward(x, context=context)
    loss, dlogits = nn.CrossEntropy()(logits, labels)
    (dx,) = graph.backward((dlogits,), saved, input_gradients=True)
    return loss, dx


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal within ``tolerance`` of the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    assert float(np.abs(actual - expected).max(initial=0)) <= tolerance * scale
