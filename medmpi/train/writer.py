"""Writes files behind the training's back: one at a time, in order, errors told at the next occasion."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Runs one job at a time in a thread; ``wait`` raises what it failed with."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begins ``job``; the one before must have been waited for."""

        def run() -> None:
            try:
                job()
            except Exception as error:  # raised by wait, in the thread that asked for it
                self._error = error

        self._thread = threading.Thread(target=run, name="medmpi checkpoint", daemon=False)
        self._thread.start()

    def wait(self) -> None:
        """Until the job is done; its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
