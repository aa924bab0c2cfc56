"""The line that says how far a run is: a bar on a terminal, else one plain line per interval; rank 0 only."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Told of each step of an epoch; prints or stays silent."""

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch of so many steps begins, some of which may be done already."""

    def step(self, loss: float, lr: float, images: int) -> None:
        """A step over so many images is done."""

    def end(self) -> None:
        """The epoch is over; the terminal is free for other lines."""


class Silent:
    """For --quiet and every rank but 0."""

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        pass

    def step(self, loss: float, lr: float, images: int) -> None:
        pass

    def end(self) -> None:
        pass


class Lines:
    """One line every `interval` seconds: for log files and launchers that hide the terminal."""

    def __init__(self, stream: TextIO, interval: float = 10.0) -> None:
        self._stream, self._interval = stream, interval

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self._head, self._steps, self._done, self._first = f"epoch {epoch}/{epochs}", steps, done, done
        self._start = self._printed = time.monotonic()
        self._images = 0

    def step(self, loss: float, lr: float, images: int) -> None:
        self._done += 1
        self._images += images
        now = time.monotonic()
        if now - self._printed < self._interval or self._done == self._steps:
            return
        self._printed = now
        passed = max(now - self._start, 1e-9)
        left = passed / (self._done - self._first) * (self._steps - self._done)
        self._stream.write(
            f"{self._head} step {self._done}/{self._steps} loss {loss:.4f} lr {lr:.4g} "
            f"{self._images / passed:.1f} images/s, epoch ends in {clock(left)}\n"
        )
        self._stream.flush()

    def end(self) -> None:
        pass


class Bar:
    """rich's bar with loss, learning rate, images per second and the time left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(file=self._stream, force_terminal=True),
            transient=True,
        )
        self._task = self._bar.add_task(f"epoch {epoch}/{epochs}", total=steps, completed=done, figures="")
        self._start, self._images = time.monotonic(), 0
        self._bar.start()

    def step(self, loss: float, lr: float, images: int) -> None:
        self._images += images
        rate = self._images / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, advance=1, figures=f"loss {loss:.4f} lr {lr:.4g} {rate:.1f} images/s")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def choose(rank: int, quiet: bool, stream: TextIO | None = None) -> Progress:
    """The display for this rank. MEDMPI_TTY=1|0 overrides what the stream says: launchers hide a terminal."""
    stream = sys.stdout if stream is None else stream
    if rank != 0 or quiet:
        return Silent()
    told = os.environ.get("MEDMPI_TTY")
    terminal = told == "1" if told in ("0", "1") else stream.isatty() and _launcher_has_terminal()
    return Bar(stream) if terminal else Lines(stream)


def _launcher_has_terminal() -> bool:
    """False under an Open MPI that writes to a file or pipe: it gives ranks a terminal of their own all the same."""
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        return True
    try:
        return os.readlink(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return True


def clock(seconds: float) -> str:
    """90 -> '1:30', 4000 -> '1:06:40'."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
