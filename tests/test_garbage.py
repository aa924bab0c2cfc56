"""Searches for cycles: none at a command's start, fewer later, Python's own habits afterwards."""

from __future__ import annotations

import gc

from medmpi.garbage import settle, spared


def test_habits_come_back():
    before = gc.isenabled(), gc.get_threshold()
    with spared():
        assert not gc.isenabled()
        settle()
        assert gc.isenabled()
        assert gc.get_threshold()[0] > before[1][0]
    assert (gc.isenabled(), gc.get_threshold()) == before
    assert gc.get_freeze_count() == 0


def test_cycles_are_still_found_after_the_start():
    class Node:
        alive = 0

        def __init__(self) -> None:
            self.itself = self
            Node.alive += 1

        def __del__(self) -> None:
            Node.alive -= 1

    with spared():
        settle()
        made = [Node() for _ in range(20_000)]
        del made
        kept = [[] for _ in range(20_000)]
    assert len(kept) == 20_000
    assert Node.alive < 15_000
