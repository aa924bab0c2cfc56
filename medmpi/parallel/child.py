"""A function in a process of its own, so that its crash is an error and not the end of the rank."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "MPI_LOCAL", "SLURM_STEP")


class ChildDied(Exception):
    """The process that ran the function is gone."""


class ChildFailed(Exception):
    """The function raised; the text is the traceback of its process."""


class Child:
    """Calls ``function`` in a spawned process (never forked: MPI and OpenMP do not survive that), which it keeps.

    The process starts with the first call and again after a crash. ChildDied says how it ended, ChildFailed what the
    function raised.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, item: Any) -> Any:
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(item)
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise ChildDied(self._how()) from None
        if not good:
            raise ChildFailed(value)
        return value

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _how(self) -> str:
        """How the process ended."""
        self._process.join(5.0)
        code = self._process.exitcode
        self._process = None
        if code is not None and code < 0:
            return f"the process that worked on it was ended by {signal.Signals(-code).name}"
        return f"the process that worked on it ended with exit code {code}"

    def close(self) -> None:
        """Ends the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.join(1.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    """What the process does until the pipe is closed."""
    for name in list(os.environ):  # it is no rank
        if name.startswith(_LAUNCHERS):
            del os.environ[name]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(item)
        except Exception:
            answer = False, traceback.format_exc()
        pipe.send(answer)
