"""Who is at an item: a file that one process alone can make, and that does not outlive it.

A claim is made by an exclusive create. It holds host, process id and the process's start time, and a thread touches it
while the item is worked on. It is stale when its process is gone (on the same host), or has not touched it for
``LEASE`` seconds (on any). Two processes that take the same stale claim at once may both do the item; that costs time
and nothing else, as results are written whole and do not depend on who computes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEASE = 180.0
_TOUCH = 20.0


def start_time(pid: int) -> str:
    """When a process of this host started (clock ticks since boot); empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Claims:
    """The claims folder of a run."""

    def __init__(self, folder: Path, *, lease: float = LEASE) -> None:
        self.folder, self._lease = folder, lease
        self._host = os.uname().nodename
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Whether this process has the claim, which ends with the block."""
        path = self.folder / f"{name}.claim"
        if not (self._create(path) or (self._break_stale(path) and self._create(path))):
            yield False
            return
        done = threading.Event()

        def touch() -> None:
            while not done.wait(min(_TOUCH, self._lease / 4)):
                with contextlib.suppress(OSError):
                    os.utime(path)

        thread = threading.Thread(target=touch, name="medmpi-slide-claim", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            done.set()
            thread.join()
            path.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Takes away what a killed process left of an item that is done."""
        path = self.folder / f"{name}.claim"
        if path.exists():
            self._break_stale(path)

    def _create(self, path: Path) -> bool:
        content = json.dumps({"host": self._host, "pid": os.getpid(), "start": start_time(os.getpid())})
        try:
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(number, "w") as file:
            file.write(content)
        return True

    def _break_stale(self, path: Path) -> bool:
        """Takes a stale claim away; False where it is alive."""
        try:
            before = path.stat()
            text = path.read_text()
        except FileNotFoundError:
            return True
        try:
            holder = json.loads(text)
            here = holder["host"] == self._host
            alive = here and start_time(int(holder["pid"])) == holder["start"]
        except (ValueError, KeyError, TypeError):
            here = alive = False  # killed between create and write, or just being written
        if alive or (not here and self._now() - before.st_mtime < self._lease):
            return False
        taken = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            return True
        taken.unlink(missing_ok=True)
        return True

    def _now(self) -> float:
        """The file system's clock, which need not be this host's."""
        probe = self.folder / f".now.{uuid.uuid4().hex}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)
