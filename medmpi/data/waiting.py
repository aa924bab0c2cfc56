"""Says how far a long opening of a data set is, to whoever asked: the data layer itself prints nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_INTERVAL = 10.0
_local = threading.local()


@contextmanager
def told_to(say: Callable[[str], None] | None) -> Iterator[None]:
    """Inside, in this thread, passes over many files tell ``say`` a line every ten seconds."""
    before = getattr(_local, "say", None)
    _local.say = say
    try:
        yield
    finally:
        _local.say = before


class Count:
    """Counts items from several threads; the lines go to where the thread that made it was told to."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._say: Callable[[str], None] | None = getattr(_local, "say", None)
        self._lock = threading.Lock()
        self._start = self._said = time.monotonic()

    def one(self) -> None:
        """One more is done."""
        if self._say is None:
            return
        with self._lock:
            self._done += 1
            now = time.monotonic()
            if now - self._said < _INTERVAL:
                return
            self._said = now
            left = (now - self._start) / self._done * (self._total - self._done)
            line = f"{self._what}: {self._done} of {self._total} files, about {left:.0f} s left"
        self._say(line)
