"""The drill slows whatever a pass through a graph has its layers do."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from medmpi import nn
from medmpi.train import slow


def fastest(graph):
    """Seconds of a forward and a backward pass in which a convolution adds onto another's gradient."""
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 16), dtype=np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (y,), saved = graph.forward(x, context=nn.Context(train=True))
        graph.backward((y,), saved, input_gradients=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_every_way_to_compute_is_slowed_once(monkeypatch):
    world = SimpleNamespace(rank=1, seconds={"wait": 0.0})
    graph = nn.Graph()
    first = graph.add("first", nn.Conv2d(16, 32, 3, padding=1), 0)
    second = graph.add("second", nn.Conv2d(32, 32, 7, padding=3), first)
    graph.add("add", nn.Add(), first, second)
    nn.Parameters(graph, seed=0)
    alone = fastest(graph)
    monkeypatch.setenv(slow.VARIABLE, "1:10")
    assert slow.slow_down(graph, world) == 10
    assert 7 * alone < fastest(graph) < 40 * alone
