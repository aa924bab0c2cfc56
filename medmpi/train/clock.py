"""A run's time: every second of every rank charged to computing, communication, waiting or input and output."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from medmpi.parallel import Account, Timer
from medmpi.parallel.timeline import Timeline
from medmpi.parallel.timing import imbalance, mean
from medmpi.train.layer_calls import wrap_layers

if TYPE_CHECKING:
    from medmpi import nn
    from medmpi.parallel import World

_UNEVEN, _STARVED = 1.3, 0.2
_SHORTEST = 0.5  # seconds of an epoch that are worth a word


class Clock:
    """Runs from its making on. With ``steps`` it records a timeline of so many steps. Collective to make."""

    def __init__(self, world: World, graph: nn.Graph, steps: int = 0) -> None:
        self._world = world
        self._timer = Timer(world.seconds)
        self._begun = time.perf_counter()
        self._lap = self._timer.read()
        self._timeline = Timeline(world) if steps else None
        self._left = steps
        if self._timeline is not None:
            self._unwrap = wrap_layers(graph, partial(self._timeline.span, kind="comp"))

    @contextlib.contextmanager
    def __call__(self, name: str, kind: str = "comp") -> Iterator[None]:
        """Charges the time inside to a kind; the name is for the timeline."""
        with self._timer(kind), self._timeline.span(name, kind) if self._timeline else contextlib.nullcontext():
            yield

    def lap(self) -> Account:
        """The time since the last lap."""
        now = self._timer.read()
        part, self._lap = now - self._lap, now
        return part

    def timeline(self, *, end: bool = False) -> str | None:
        """After each step: the trace of all ranks when the last step to record is over (or it is the end), on rank 0.

        Collective when there is a timeline to bring together.
        """
        if self._timeline is None:
            return None
        self._left -= 0 if end else 1
        if self._left > 0 and not end:
            return None
        timeline, self._timeline = self._timeline, None
        self._unwrap()
        return timeline.merged()

    def table(self) -> dict[str, Any]:
        """The account of every rank so far and what follows from it, the same on all ranks. Collective."""
        account, wall = self._timer.read(), time.perf_counter() - self._begun
        mine = (account, wall, len(os.sched_getaffinity(0)))
        found = self._world.allgather(mine, "compare accounts")
        accounts = [a for a, _, _ in found]
        average = mean(accounts)
        return {
            "ranks": [
                {
                    "rank": rank, "host": self._world.hosts[rank], "wall_s": seconds, "t_comp": a.comp,
                    "t_comm": a.comm, "t_wait": a.wait, "t_io": a.io, "accounted": a.total / seconds,
                }
                for rank, (a, seconds, _) in enumerate(found)
            ],
            "wall_s": max(seconds for _, seconds, _ in found),
            "rank_seconds": sum(seconds for _, seconds, _ in found),
            "r_alloc": average.r_alloc,
            "r_alloc_literal": average.r_alloc_as_printed,
            "imbalance": imbalance(accounts),
        }  # fmt: skip


def bottleneck(accounts: list[Account], hosts: list[str], advice: str) -> str | None:
    """One line about what holds the ranks up most in an epoch and what to do about it; None where all is well."""
    average = mean(accounts)
    if average.total < _SHORTEST:
        return None
    if average.io > _STARVED * average.total:
        return (
            f"bottleneck: {100 * average.io / average.total:.0f} % of the epoch went to reading data and writing files;"
            " more --workers or a faster file system would help"
        )
    if len(accounts) > 1 and imbalance(accounts) > _UNEVEN:
        slowest = max(range(len(accounts)), key=lambda rank: accounts[rank].comp)
        return (
            f"bottleneck: rank {slowest} on {hosts[slowest]} computed for {accounts[slowest].comp:.1f} s of the epoch,"
            f" the ranks' mean is {average.comp:.1f} s (imbalance {imbalance(accounts):.2f}); {advice}"
        )
    return None
