"""Collective operations against numpy, on one to four ranks, on one node and on several pretended ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medmpi import parallel
from medmpi.parallel import World


def share_of(rank: int, n: int, dtype: type) -> np.ndarray:
    """What a rank adds; every rank can compute everyone's."""
    values = np.random.default_rng((7, rank)).normal(size=n) * 1000
    return values.astype(dtype)


def ordered_sum(size: int, n: int, dtype: type) -> np.ndarray:
    """((x0 + x1) + x2) + ..."""
    total = share_of(0, n, dtype)
    for rank in range(1, size):
        total += share_of(rank, n, dtype)
    return total


def check_sums(world: World) -> None:
    for dtype in (np.float32, np.float64, np.int64):
        for n in (0, 1, 3, 1000, 70_001):
            expected = ordered_sum(world.size, n, dtype)
            for _ in range(2):
                mine = share_of(world.rank, n, dtype)
                assert world.sum(mine) is mine
                np.testing.assert_array_equal(mine, expected)


def check_begun_sums(world: World) -> None:
    for n in (0, 1, 1000, 40_000):
        mine = share_of(world.rank, n, np.float64)
        finish = world.start_sum(mine)
        assert finish() is mine
        np.testing.assert_array_equal(mine, ordered_sum(world.size, n, np.float64))
    if world.nodes > 1 or world.size == 1:
        return
    finish = world.start_sum(mine[:1], "first")
    with pytest.raises(RuntimeError, match="a sum that was begun has not been finished"):
        world.barrier()
    finish()


def check_objects(world: World) -> None:
    last = world.size - 1
    assert world.broadcast({"from": world.rank}, root=last) == {"from": last}
    assert world.allgather(world.rank * 2) == [2 * r for r in range(world.size)]
    gathered = world.gather(str(world.rank), root=last)
    assert gathered == ([str(r) for r in range(world.size)] if world.rank == last else None)
    values = np.full(1000, world.rank, np.float32)
    np.testing.assert_array_equal(world.broadcast_array(values, root=last), np.full(1000, last))
    assert world.any(world.rank == last)
    assert not world.any(False)
    world.barrier()


def check_all(world: World) -> None:
    check_sums(world)
    check_begun_sums(world)
    check_objects(world)


@pytest.mark.parametrize("ranks", [pytest.param(n, marks=pytest.mark.mpi(min_size=n)) for n in (2, 3, 4)])
def test_operations(world: World, ranks: int) -> None:
    assert world.size >= ranks
    assert world.nodes == 1
    assert not world.shared_memory_problem
    check_all(world)


def test_one_rank() -> None:
    world = parallel.start()
    check_all(world)
    grad = world.allocate(100)
    grad += 3
    assert world.sum(grad)[99] == 3
    assert world.split(0).size == 1
    world.close()


@pytest.mark.mpi(min_size=2)
def test_shared_memory_is_given_back(world: World) -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:medmpi")

    kept = world.allocate(1000)
    before = held()
    for n in (1, 10_000, 3_000_000, 10_000):
        array = world.allocate(n)
        array.fill(world.rank + 1)
        part = array[n // 2 :]
        del array
        world.sum(part)  # a view keeps the memory
        assert part[0] == sum(range(1, world.size + 1))
        del part
    assert world.allocate(5)[0] == 0
    world.barrier()
    assert held()[0] <= before[0] + 1  # the last one, until the next is made
    assert held()[1] <= before[1] + 1
    assert not any("medmpi" in name for name in os.listdir("/dev/shm"))
    assert world.find(kept) is not None
    assert world.find(kept.copy()) is None


@pytest.mark.mpi(min_size=2)
def test_arguments_are_checked(world: World) -> None:
    with pytest.raises(ValueError, match="expected the same on all"):
        world.allocate(10 + world.rank)
    with pytest.raises(TypeError, match="array is float16, expected"):
        world.sum(np.zeros(3, np.float16))
    with pytest.raises(TypeError, match="not contiguous"):
        world.sum(np.zeros((4, 4))[:, 1])
    with pytest.raises(SystemExit) as stop:
        world.agree({"seed": world.rank})
    assert stop.value.code == 2
    world.agree({"seed": 1})
    before = dict(world.seconds)
    world.barrier()
    with world.guard("a broadcast of our own"):
        world.comm.bcast(1)
    assert world.seconds["comm"] > before["comm"]
    assert world.seconds["wait"] >= before["wait"]


@pytest.mark.mpi(min_size=2)
def test_ranks_that_meet_for_different_things(world: World) -> None:
    part = world.split(0)
    with pytest.raises(RuntimeError, match=r"another number of bytes|is in 'sum [ab]' instead"):
        part.sum(np.zeros(3), "sum a" if world.rank else "sum b")
    other = world.split(0)
    with pytest.raises(RuntimeError, match="another number of bytes"):
        other.sum(np.zeros(3 + world.rank))
    world.barrier()
