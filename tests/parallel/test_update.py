"""Updates of weights that a node's ranks share against every rank's own, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medmpi import nn, parallel
from medmpi.parallel import NodeUpdate, World, update

Make = Callable[[nn.Parameters], nn.optim.Optimizer]
KINDS: dict[str, Make] = {
    "sgd": lambda p: nn.SGD(p, lr=0.1),
    "nesterov": lambda p: nn.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: nn.AdamW(p, lr=0.01),
}


def network() -> nn.Graph:
    """Parameters of odd sizes, some of them frozen."""
    graph = nn.Graph(1)
    first = graph.add("first", nn.Conv2d(3, 37, 3, padding=1), 0)
    second = graph.add("second", nn.Conv2d(37, 61, 3, padding=1), first)
    third = graph.add("third", nn.Conv2d(61, 53, 1), second)
    graph.add("fourth", nn.Conv2d(53, 101, 3, padding=1), third)
    graph.nodes[2].layer.frozen = True
    return graph


def check_steps(world: World, make: Make) -> None:
    shared, own = (nn.Parameters(network(), seed=3) for _ in range(2))
    ours, theirs = make(shared), make(own)
    for optimizer in (ours, theirs):
        optimizer.scale_rates({"second": 0.25})
    together = NodeUpdate(shared, ours, world)
    assert together.shared == (world.local_size > 1)
    for step in range(4):
        gradient = np.random.default_rng(step).normal(size=own.grad.size).astype(np.float32)
        shared.grad[:], own.grad[:] = gradient, gradient
        together.step()
        theirs.step()
        np.testing.assert_array_equal(shared.value, own.value)
        np.testing.assert_array_equal(shared.graph["fourth"].p["weight"], own.graph["fourth"].p["weight"])
    mine, expected = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(mine[name], value, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [pytest.param(n, marks=pytest.mark.mpi(min_size=n)) for n in (2, 3)])
def test_ranks_update_as_each_alone(world: World, monkeypatch: pytest.MonkeyPatch, ranks: int, kind: str) -> None:
    assert world.size >= ranks
    monkeypatch.setattr(update, "SMALLEST", 0)
    check_steps(world, KINDS[kind])


@pytest.mark.mpi(min_size=3)
def test_nodes_have_a_copy_each(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(update, "SMALLEST", 0)
    two_nodes = parallel.start(timeout=30, nodes=2)
    check_steps(two_nodes, KINDS["adamw"])
    two_nodes.close()


@pytest.mark.mpi(min_size=2)
def test_small_or_private_weights_stay(world: World) -> None:
    parameters = nn.Parameters(network())
    assert parameters.value.nbytes < update.SMALLEST
    before = parameters.value
    assert not NodeUpdate(parameters, nn.SGD(parameters, lr=0.1, momentum=0.9), world).shared
    assert parameters.value is before


@pytest.mark.mpi(min_size=2)
def test_one_copy_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "SMALLEST", 0)
    parameters = nn.Parameters(network())
    optimizer = nn.SGD(parameters, lr=0.0, momentum=0.9)
    NodeUpdate(parameters, optimizer, world)
    world.barrier()
    if world.rank == 0:
        parameters.value[5] = 7.0
        optimizer.momentum_buffer[9] = 8.0
    world.barrier()
    assert parameters.value[5] == 7.0
    assert optimizer.momentum_buffer[9] == 8.0
