"""Where a rank's time goes: computing, communicating, waiting for other ranks, reading and writing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

KINDS = ("comp", "comm", "wait", "io")


@dataclass(frozen=True)
class Account:
    """Seconds of one rank, or their means over ranks; the four kinds add up to ``total``."""

    comp: float = 0.0
    comm: float = 0.0
    wait: float = 0.0
    io: float = 0.0

    @property
    def total(self) -> float:
        """Wall time."""
        return self.comp + self.comm + self.wait + self.io

    @property
    def r_alloc(self) -> float:
        """S0 eq. 12 read as (T_comp + T_comm) / T_total: the part of the time in which the rank was of use."""
        return (self.comp + self.comm) / self.total if self.total > 0 else 0.0

    @property
    def r_alloc_as_printed(self) -> float:
        """S0 eq. 12 as printed, T_comp + T_comm / T_total: seconds plus a ratio, so shown only beside the other."""
        return self.comp + (self.comm / self.total if self.total > 0 else 0.0)

    def __sub__(self, other: Account) -> Account:
        return Account(*(getattr(self, k) - getattr(other, k) for k in KINDS))


def mean(accounts: list[Account]) -> Account:
    """The mean account of several ranks."""
    return Account(*(sum(getattr(a, k) for a in accounts) / len(accounts) for k in KINDS))


def imbalance(accounts: list[Account]) -> float:
    """Longest computing time of a rank over the mean; 1 is perfect balance."""
    average = mean(accounts).comp
    return max(a.comp for a in accounts) / average if average > 0 else 1.0


class Timer:
    """A clock that is always running for exactly one kind of time, ``comp`` unless told otherwise.

    ``with timer("io"): ...`` charges a part of the program to another kind. Given ``world.seconds``, the time that
    collective operations spend is taken out of whatever was running and charged to ``comm`` and ``wait``.
    """

    def __init__(self, collective: Mapping[str, float] | None = None) -> None:
        self._collective = collective if collective is not None else {"comm": 0.0, "wait": 0.0}
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "comp"
        self._since, self._before = time.perf_counter(), self._collected()

    def _settle(self) -> None:
        """Charges the time since this was last called; not a moment between two calls is lost."""
        now, (comm, wait) = time.perf_counter(), self._collected()
        elapsed = now - self._since
        comm, wait = comm - self._before[0], wait - self._before[1]
        scale = (
            min(1.0, elapsed / (comm + wait)) if comm + wait > 0 else 0.0
        )  # nested clocks may differ by microseconds
        self._seconds["comm"] += comm * scale
        self._seconds["wait"] += wait * scale
        self._seconds[self._kind] += elapsed - (comm + wait) * scale
        self._since, self._before = now, (self._before[0] + comm, self._before[1] + wait)

    def _collected(self) -> tuple[float, float]:
        return self._collective["comm"], self._collective["wait"]

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Charges the time inside to ``kind``; nests."""
        if kind not in KINDS:
            raise ValueError(f"Timer: kind is '{kind}', expected one of {', '.join(KINDS)}")
        self._settle()
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._settle()
            self._kind = before

    def read(self) -> Account:
        """The account since the timer was made; differences of two give an epoch's."""
        self._settle()
        return Account(**self._seconds)
