"""Ranks of one machine that take each other for ranks of two: what crosses nodes goes through MPI."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import parallel
from medmpi.parallel import World

from .test_buckets import SIZES, backward, check_buckets, check_statistics, flat, node_by_node, values
from .test_world import check_all


@pytest.fixture(scope="module")
def two_nodes(world: World) -> World:
    """The same ranks on two nodes."""
    return parallel.start(timeout=30, nodes=2)


@pytest.mark.mpi(min_size=3)
def test_two_nodes(world: World, two_nodes: World) -> None:
    assert two_nodes.nodes == 2
    assert sorted(r for ranks in two_nodes.node_ranks for r in ranks) == list(range(two_nodes.size))
    check_all(two_nodes)
    check_buckets(two_nodes)
    check_statistics(two_nodes)
    grad = two_nodes.allocate(1000)
    grad += two_nodes.rank + 1
    two_nodes.sum(grad)
    np.testing.assert_array_equal(grad, np.full(1000, sum(range(1, two_nodes.size + 1))))


@pytest.mark.mpi(min_size=3)
def test_order_of_nodes(world: World) -> None:
    three = parallel.start(timeout=30, nodes=3)
    three.reproducible = True
    check_buckets(three)  # compares bit by bit with the sum in the order of ranks and nodes
    grad = three.allocate(70_000)
    grad += values(three.rank, 0, grad.size)
    np.testing.assert_array_equal(three.sum(grad), node_by_node(three, 0, grad.size))
    three.close()


@pytest.mark.mpi(min_size=3)
def test_small_sums_do_not_depend_on_nodes(world: World, two_nodes: World) -> None:
    mine = values(world.rank, 0, 5000)
    np.testing.assert_array_equal(world.sum(mine.copy()), two_nodes.sum(mine.copy()))


@pytest.mark.mpi(min_size=3)
def test_split_worlds(world: World, two_nodes: World) -> None:
    for whole in (world, two_nodes):
        part = whole.split(whole.rank % 2)
        assert part.size == len(range(whole.rank % 2, whole.size, 2))
        assert part.rank == whole.rank // 2
        total = part.sum(np.array([float(whole.rank)]))
        assert total[0] == sum(range(whole.rank % 2, whole.size, 2))
        parameters = flat(part, SIZES)
        buckets = parallel.GradientBuckets(parameters, part)
        backward(buckets, parameters, np.ones(parameters.grad.size, np.float32), list(parameters.slices))
        assert (parameters.grad == part.size).all()
        part.close()
        whole.barrier()
