"""Gradient buckets against numpy's ordered sum, in the order of backward and in others, and rank statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from medmpi.parallel import GradientBuckets, RankStatistics, World
from medmpi.parallel.buckets import bucket_edges


@dataclass
class Flat:
    """Stands in for ``nn.Parameters``."""

    grad: np.ndarray
    slices: dict[str, slice] = field(default_factory=dict)


def flat(world: World, sizes: list[int]) -> Flat:
    """Nodes of these sizes, one after the other."""
    edges = np.cumsum([0, *sizes])
    slices = {f"n{i}": slice(int(a), int(b)) for i, (a, b) in enumerate(pairwise(edges))}
    return Flat(world.allocate(int(edges[-1])), slices)


def values(rank: int, step: int, n: int) -> np.ndarray:
    """A rank's gradients."""
    return np.random.default_rng((rank, step)).normal(size=n).astype(np.float32)


def backward(buckets: GradientBuckets, parameters: Flat, mine: np.ndarray, order: list[str]) -> None:
    """Fills the gradients node by node and sums them."""
    parameters.grad.fill(0)
    for name in order:
        parameters.grad[parameters.slices[name]] += mine[parameters.slices[name]]
        buckets.done(SimpleNamespace(name=name))
    buckets.finish()


SIZES = [10, 3000, 0, 70_000, 16, 16, 5000, 200_001]


def check_buckets(world: World) -> None:
    for bucket_bytes in (1, 40_000, 1 << 30):
        parameters = flat(world, SIZES)
        buckets = GradientBuckets(parameters, world, bucket_bytes)
        n = parameters.grad.size
        for step in range(3):
            order = list(parameters.slices)
            if step == 2:  # fused nodes are done out of order
                order[1], order[3] = order[3], order[1]
            backward(buckets, parameters, values(world.rank, step, n), order)
            expected = node_by_node(world, step, n)
            np.testing.assert_array_equal(parameters.grad, expected)
            if world.size > 1:
                assert buckets.t_comm > 0
                assert buckets.t_wait >= 0


def node_by_node(world: World, step: int, n: int) -> np.ndarray:
    """The ordered sum inside each node, then over nodes."""
    sums = []
    for ranks in world.node_ranks:
        total = values(ranks[0], step, n)
        for rank in ranks[1:]:
            total += values(rank, step, n)
        sums.append(total)
    for more in sums[1:]:
        sums[0] += more
    return sums[0]


def check_statistics(world: World) -> None:
    statistics = RankStatistics(world)
    for channels in (1, 64, 5000):
        # the first rank has nothing, the others different shares
        data = [np.random.default_rng(r).normal(3, 2, size=(17 * r, channels)) for r in range(world.size)]
        mine = data[world.rank]
        mean = mine.mean(0) if len(mine) else np.zeros(channels)
        m2 = ((mine - mean) ** 2).sum(0) if len(mine) else np.zeros(channels)
        count, all_mean, all_m2 = statistics.merge(len(mine), mean, m2)
        everything = np.concatenate(data)
        assert count == len(everything)
        if count:
            np.testing.assert_allclose(all_mean, everything.mean(0), rtol=1e-12)
            np.testing.assert_allclose(all_m2, everything.var(0) * count, rtol=1e-11)
        before = mine.sum(0)
        kept = before.copy()
        finish = statistics.start_sum(before)
        np.testing.assert_allclose(finish(), everything.sum(0), rtol=1e-12)
        np.testing.assert_array_equal(before, kept)
        everyone = world.allgather((all_mean.tobytes(), all_m2.tobytes()))
        assert len(set(everyone)) == 1, "the ranks' merged statistics differ"
    nothing = np.zeros(3)
    count, all_mean, all_m2 = statistics.merge(0, nothing, nothing)
    assert count == 0
    assert not all_mean.any()
    assert not all_m2.any()


@pytest.mark.parametrize("ranks", [pytest.param(n, marks=pytest.mark.mpi(min_size=n)) for n in (2, 3)])
def test_buckets(world: World, ranks: int) -> None:
    assert world.size >= ranks
    check_buckets(world)


@pytest.mark.mpi(min_size=3)
def test_statistics(world: World) -> None:
    check_statistics(world)


@pytest.mark.mpi(min_size=2)
def test_gradients_must_be_shared(world: World) -> None:
    own = Flat(np.zeros(10, np.float32), {"n0": slice(0, 10)})
    with pytest.raises(ValueError, match=r"expected one of world\.allocate"):
        GradientBuckets(own, world)
    parameters = flat(world, [10])
    buckets = GradientBuckets(parameters, world)
    buckets.done(SimpleNamespace(name="n0"))
    with pytest.raises(ValueError, match="second time"):
        buckets.done(SimpleNamespace(name="n0"))
    buckets.finish()


def test_edges_follow_nodes() -> None:
    slices = {"a": slice(0, 10), "b": slice(10, 12), "c": slice(12, 100), "d": slice(100, 101)}
    assert bucket_edges(slices, 101, 40) == [0, 10, 100, 101]
    assert bucket_edges(slices, 101, 1 << 20) == [0, 101]
    assert bucket_edges({}, 0, 40) == [0, 0]
