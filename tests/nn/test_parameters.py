"""Flat parameters: order, views, initial distributions, keys of the random numbers."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from twin import alone, network

from medmpi import nn
from medmpi.kernels.arrays import Array


def test_views_lie_in_the_flat_arrays_last_node_first() -> None:
    graph = network()
    parameters = nn.Parameters(graph)
    assert list(parameters.slices) == [node.name for node in reversed(graph.nodes)]
    end = 0
    for part in parameters.slices.values():
        assert part.start == end
        end = part.stop
    assert end == parameters.value.size == parameters.grad.size
    parameters.value[...] = np.arange(end)
    for node in graph.nodes:
        part = parameters.slices[node.name]
        for name, value in node.layer.p.items():
            assert np.shares_memory(value, parameters.value)
            assert np.shares_memory(node.layer.g[name], parameters.grad)
            assert part.start <= value.min() <= value.max() < part.stop
            assert value.ctypes.data % 64 == 0
            assert value.shape == node.layer.parameter_specs()[name].shape
    assert len(parameters) == sum(value.size for _, value in parameters.named())
    assert [name for name, _ in parameters.named()][:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert [name for name, _ in parameters.named_gradients()] == parameters.names()


def test_allocate_places_the_gradients() -> None:
    sizes = []

    def allocate(n: int) -> Array:
        sizes.append(n)
        return np.full(n + 3, 7, np.float32)[:n]

    graph = network()
    parameters = nn.Parameters(graph, allocate=allocate)
    assert sizes == [parameters.value.size]
    assert not parameters.grad.any()
    graph["fc2"].g["bias"] += 2
    assert parameters.grad.sum() == 6
    parameters.zero_grad()
    assert not graph["fc2"].g["bias"].any()
    with pytest.raises(ValueError, match="allocate gave float64"):
        nn.Parameters(network(), allocate=lambda n: np.zeros(n))  # type: ignore[arg-type, return-value]


def test_values_depend_on_seed_and_name_alone() -> None:
    whole = nn.Parameters(network(), seed=3)
    again = nn.Parameters(network(), seed=3)
    np.testing.assert_array_equal(whole.value, again.value)
    fused = dict(nn.Parameters(network().fuse(), seed=3).named())
    for name, value in whole.named():
        np.testing.assert_array_equal(fused[name], value)
    for stage in network().split([4, 11]):
        for name, value in nn.Parameters(stage, seed=3).named():
            np.testing.assert_array_equal(value, fused[name])
    other = dict(nn.Parameters(network(), seed=4).named())
    assert all((other[name] != value).all() for name, value in whole.named() if "conv" in name)
    graph = nn.Graph()
    graph.add("a", nn.Linear(8, 8))
    graph.add("b", nn.Linear(8, 8))
    nn.Parameters(graph)
    assert (graph["a"].p["weight"] != graph["b"].p["weight"]).any()


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (nn.Conv2d(32, 64, 3, groups=4), 1 / sqrt(8 * 9)),
        (nn.Linear(300, 70), 1 / sqrt(300)),
        (nn.ConvTranspose2d(64, 32, 3), 1 / sqrt(32 * 9)),
    ],
    ids=["conv", "linear", "transpose"],
)
def test_defaults_are_torchs_distributions(layer: nn.Layer, bound: float) -> None:
    _, parameters = alone(layer, seed=5)
    weight = layer.p["weight"]
    assert np.abs(weight).max() == pytest.approx(bound, rel=1e-2)
    assert np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / sqrt(3), rel=0.03)
    assert abs(weight.mean()) < 4 * bound / sqrt(3 * weight.size)
    assert 0.7 * bound < np.abs(layer.p["bias"]).max() <= bound
    assert parameters.value.dtype == np.float32


def test_torch_agrees_on_the_default_bounds() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the initial values")
    for module, layer in (
        (torch.nn.Conv2d(32, 64, 3, groups=4), nn.Conv2d(32, 64, 3, groups=4)),
        (torch.nn.ConvTranspose2d(64, 32, 3), nn.ConvTranspose2d(64, 32, 3)),
        (torch.nn.Linear(300, 70), nn.Linear(300, 70)),
    ):
        alone(layer)
        for name, value in module.named_parameters():
            assert np.abs(layer.p[name]).max() == pytest.approx(value.abs().max().item(), rel=0.15)
            if value.numel() > 1000:
                assert layer.p[name].std() == pytest.approx(value.std().item(), rel=0.05)


def test_chosen_distributions() -> None:
    init = {"weight": nn.kaiming_normal("fan_out"), "bias": nn.constant(0.25)}
    layer = nn.Conv2d(16, 64, 3, init=init)
    alone(layer)
    assert layer.p["weight"].std() == pytest.approx(sqrt(2 / (64 * 9)), rel=0.03)
    assert (layer.p["bias"] == 0.25).all()
    linear = nn.Linear(100, 100, init={"weight": nn.truncated_normal(1.0, 1.5)})
    alone(linear)
    assert np.abs(linear.p["weight"]).max() <= 1.5
    assert linear.p["weight"].std() == pytest.approx(0.743, rel=0.03)  # of a normal cut at 1.5 deviations
    norm = nn.BatchNorm2d(5, init={"weight": nn.constant(0.0)})
    alone(norm)
    assert not norm.p["weight"].any()
    alone(plain := nn.BatchNorm2d(5))
    assert (plain.p["weight"] == 1).all()
    assert not plain.p["bias"].any()
