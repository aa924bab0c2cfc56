"""Each item on one rank, once; what a rank leaves, spoils or is stuck with goes to another one."""

from __future__ import annotations

import os
import signal
import time
from itertools import chain
from pathlib import Path

import pytest

from medmpi.parallel import World, collect, pull
from medmpi.parallel.dispatch import Dispatcher


def test_items_are_given_out_once_and_ahead_while_plenty_are_left() -> None:
    book = Dispatcher(range(10), 2)
    assert book.assign(0.0) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert book.assign(0.0) == []
    assert book.finish(1, 2, 1.0)
    assert book.assign(1.0) == [(1, 4)]
    for worker, item in ((1, 3), (1, 4)):
        assert book.finish(worker, item, 2.0)
    assert book.assign(2.0) == [(1, 5)], "four left for two workers: only who is idle gets one"
    assert book.finish(1, 5, 3.0)
    assert not book.finish(1, 5, 3.0), "finished twice"


def test_what_a_worker_leaves_goes_to_others_first() -> None:
    book = Dispatcher(range(20), 2)
    book.assign(0.0)
    book.leave(0)
    assert list(book.pending)[:2] == [0, 1]
    book.finish(1, 2, 1.0)
    assert book.assign(1.0) == [(1, 0)]
    book.leave(1)
    assert book.over
    assert not book.complete


def test_a_failed_item_has_its_attempts() -> None:
    book = Dispatcher([0, 1], 1, attempts=2)
    book.assign(0.0)
    assert not book.fail(0, 0, "bad", 1.0)
    assert book.assign(1.0) == [(0, 1)]
    book.finish(0, 1, 2.0)
    assert book.assign(2.0) == [(0, 0)]
    assert book.fail(0, 0, "bad again", 3.0)
    assert book.complete
    assert book.failed == {0: "bad again"}


def test_an_overdue_item_is_lent_once() -> None:
    book = Dispatcher(range(3), 3, lease=5.0)
    assert len(book.assign(0.0)) == 3
    book.finish(1, 1, 1.0)
    book.finish(2, 2, 1.0)
    assert book.assign(4.0) == []
    assert book.assign(5.5) == [(1, 0)]
    assert book.assign(5.5) == [], "not to a third"
    assert book.finish(1, 0, 6.0)
    assert book.complete
    assert not book.finish(0, 0, 7.0), "the late one does not count"


def test_after_a_stop_nothing_is_given_out() -> None:
    book = Dispatcher(range(3), 1)
    book.assign(0.0)
    book.stop()
    book.finish(0, 0, 1.0)
    assert book.assign(1.0) == []
    assert book.over
    assert not book.complete


@pytest.fixture
def alone() -> World:
    """A world of one rank without MPI."""
    from medmpi.parallel.guard import Guard

    return World(None, Guard(0, 1, lambda code: None), timeout=30)


def test_one_process_without_mpi(alone: World) -> None:
    work = pull(alone, ["a", "b", "c"])
    assert list(work) == ["a", "b", "c"]
    assert work.complete
    assert list(pull(alone, [])) == []
    assert list(pull(alone, [3, 1, 2], cost=float)) == [3, 2, 1]
    outcomes = collect(alone, lambda x: 10 // x, [5, 0, 2], attempts=2)
    assert outcomes is not None
    assert [o.value for o in outcomes if o] == [2, None, 5]
    assert "ZeroDivisionError" in (outcomes[1].error or "")
    assert outcomes[0].error is None


def test_breaking_out_leaves_the_rest(alone: World) -> None:
    work = pull(alone, range(5))
    for item in work:
        if item == 2:
            break
    work.close()
    assert not work.complete


def test_a_stop_on_request_finishes_what_is_at_hand(alone: World) -> None:
    seen = []
    work = pull(alone, range(5))
    for item in work:
        seen.append(item)
        if item == 1:
            alone.request_stop()
    assert seen == [0, 1, 2]  # 2 had been given out already
    assert not work.complete


def test_settings_are_checked(alone: World) -> None:
    with pytest.raises(ValueError, match="attempts is 0"):
        pull(alone, [1], attempts=0)
    with pytest.raises(ValueError, match="lease is -1"):
        collect(alone, str, [1], lease=-1)


def crash_once(mark: str) -> str:
    """Kills its process the first time it sees a name."""
    if mark.endswith("bad") and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if mark.endswith("worst"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if mark.endswith("wrong"):
        raise ValueError("wrong item")
    return mark


def test_a_crash_in_a_child_costs_an_attempt(alone: World, tmp_path: Path) -> None:
    items = [str(tmp_path / name) for name in ("good", "bad", "worst", "wrong", "fine")]
    outcomes = collect(alone, crash_once, items, attempts=2, isolate=True)
    assert outcomes is not None
    assert [o is not None and o.value for o in outcomes] == [items[0], items[1], None, None, items[4]]
    assert outcomes[2] is not None
    assert outcomes[2].error == "the process that worked on it was ended by SIGSEGV"
    assert outcomes[3] is not None
    assert "ValueError: wrong item" in (outcomes[3].error or "")


def check_pull(world: World) -> None:
    for n in (0, 1, world.size, 50):
        mine = list(pull(world, range(n)))
        everything = world.allgather(mine)
        assert sorted(chain(*everything)) == list(range(n))


@pytest.mark.mpi(min_size=2)
def test_every_item_comes_once(world: World) -> None:
    check_pull(world)


@pytest.mark.mpi(min_size=4)
def test_every_item_comes_once_on_four(world: World) -> None:
    check_pull(world)


@pytest.mark.mpi(min_size=2)
def test_outcomes_come_to_rank_0_in_order(world: World) -> None:
    told = []
    outcomes = collect(world, lambda i: (i, world.rank), range(40), on_result=told.append)
    assert (outcomes is None) == (world.rank != 0)
    if outcomes is not None:
        assert [o.value[0] for o in outcomes if o and o.value] == list(range(40))
        assert {o.rank for o in outcomes if o} <= set(range(world.size))
        assert sorted(o.index for o in told) == list(range(40))


@pytest.mark.mpi(min_size=3)
def test_what_one_rank_spoils_another_does(world: World) -> None:
    def choosy(i: int) -> int:
        time.sleep(0.001)
        if world.rank == 1 and i % 2:
            raise RuntimeError("not here")
        return i * i

    outcomes = collect(world, choosy, range(30), attempts=2)
    if outcomes is not None:
        assert [o.value for o in outcomes if o] == [i * i for i in range(30)]


@pytest.mark.mpi(min_size=3)
def test_a_rank_that_breaks_out_leaves_its_items_to_the_others(world: World) -> None:
    done = []
    for i in pull(world, range(30)):
        time.sleep(0.001)
        if world.rank != 1:
            done.append(i)
        else:
            break
    assert sorted(chain(*world.allgather(done))) == list(range(30))
    assert sorted(chain(*world.allgather(list(pull(world, range(9)))))) == list(range(9)), "the next one is clean"


@pytest.mark.mpi(min_size=3)
def test_an_item_that_takes_too_long_goes_to_another_rank_too(world: World) -> None:
    """Rank 1 sleeps over its first item until the others have done all there is."""
    slow = 1.5

    def work(i: int) -> int:
        if world.rank == 1:
            time.sleep(slow)
        return world.rank

    start = time.monotonic()
    finished = []
    outcomes = collect(world, work, range(12), lease=0.2, on_result=lambda o: finished.append(time.monotonic() - start))
    if outcomes is not None:
        assert all(o and o.error is None for o in outcomes)
        assert len(finished) == 12
        assert 1 not in {o.value for o in outcomes if o}, "rank 1 was last with all that it began"


@pytest.mark.mpi(min_size=2)
def test_a_stop_on_one_rank_ends_the_queue_on_all(world: World) -> None:
    seen = 0
    work = pull(world, range(20_000))  # some ten seconds, if nobody asked to stop
    for _ in work:
        time.sleep(0.001)
        seen += 1
        if world.rank == 1 and seen == 5:
            world.request_stop()
    assert not work.complete
    assert sum(world.allgather(seen)) < 10_000  # a rank without a core may be late to ask
    world._guard.stop = False
    world.barrier()


def busy(seconds: float) -> None:
    """Simulated work: takes so long whoever else is on the machine."""
    time.sleep(seconds)


@pytest.mark.mpi(min_size=4)
def test_uneven_items_are_packed_well(world: World) -> None:
    """Costs differ by 3x; no rank idles while there is work."""
    costs = [0.005 * (1 + 2 * ((7 * i) % 100) / 99) for i in range(400)]
    best = 0.0
    for _ in range(6):  # other programs may have the cores for a while
        world.barrier()
        start = time.perf_counter()
        mine = sum(_timed(c) for c in pull(world, costs))
        world.barrier()
        wall = time.perf_counter() - start
        worked = world.allgather(mine)
        best = max(best, sum(worked) / world.size / wall)
        if world.allgather(best >= 0.95)[0]:
            break
    crowded = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1) + world.size
    assert world.broadcast(best) >= world.broadcast(0.6 if crowded else 0.9), f"{best:.3f} of ideal packing"


def _timed(seconds: float) -> float:
    start = time.perf_counter()
    busy(seconds)
    return time.perf_counter() - start
