"""Which executor a command runs on, its exit code, and the lines it prints; MPI is imported only under a launcher."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

from medmpi.data import DataError

if TYPE_CHECKING:
    from medmpi.parallel import World

T = TypeVar("T")
DONE, ERROR, USAGE, BAD_DATA, REQUEUE, INTERRUPTED = 0, 1, 2, 3, 85, 130
_LAUNCHERS = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")
S4_RATE = 4.43  # windows a second and core of S4's cluster


def launched() -> bool:
    """Whether an MPI launcher started this process."""
    return any(name in os.environ for name in _LAUNCHERS)


class UsageError(ValueError):
    """Options that make no sense."""


@contextmanager
def usage() -> Iterator[None]:
    """ValueErrors of what is made from options are the user's."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


_world: World | None = None


def start_world() -> World:
    """The ranks. Items take as long as they take, so that no rank is given up for being slow."""
    global _world
    if _world is None:
        from medmpi import parallel

        _world = parallel.start(timeout=7 * 86400.0)
    return _world


def world_if_launched() -> World | None:
    """The ranks, where a launcher started this process; None otherwise, without importing MPI."""
    return start_world() if launched() else None


def on_root(world: World | None, action: Callable[[], T]) -> T:
    """Runs ``action`` on rank 0 and gives its result to all. Its expected errors end all ranks, told once."""
    if world is None:
        return action()
    found: tuple[T | None, int] = (None, DONE)
    if world.rank == 0:
        try:
            found = (action(), DONE)
        except (DataError, UsageError, OSError) as error:
            print(f"medmpi: error: {error}", file=sys.stderr, flush=True)
            found = (None, USAGE if isinstance(error, UsageError) else BAD_DATA)
    result, code = world.broadcast(found)
    if code:
        sys.exit(code)
    return cast(T, result)


class Progress:
    """One line every ``interval`` seconds with what is done and the time left; on a terminal it rewrites itself."""

    def __init__(self, what: str, *, quiet: bool = False, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._what, self._quiet = what, quiet
        self._stream = sys.stderr if stream is None else stream
        terminal = os.environ.get("MEDMPI_TTY", "1" if self._stream.isatty() else "0") == "1"
        self._end, self._interval = ("\r", 0.5) if terminal else ("\n", interval)
        self._start = self._printed = time.monotonic()
        self._shown = False

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """``done`` of ``total`` items (parts of items count)."""
        now = time.monotonic()
        if self._quiet or now - self._printed < self._interval:
            return
        self._printed = now
        left = (now - self._start) / done * (total - done) if done > 0 else 0.0
        text = f"{self._what} {int(done)}/{total:.0f}{note}" + (f", {clock(left)} left" if done > 0 else "")
        self._stream.write(f"{text:<79}{self._end}" if self._end == "\r" else text + "\n")
        self._stream.flush()
        self._shown = True

    def close(self) -> None:
        """Leaves the terminal's line."""
        if self._shown and self._end == "\r":
            self._stream.write(" " * 79 + "\r")
            self._stream.flush()


def clock(seconds: float) -> str:
    """90 -> '1:30', 4000 -> '1:06:40'."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(text: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
    if not quiet:
        print(text, file=stream or sys.stdout, flush=True)
