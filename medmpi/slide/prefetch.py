"""Reading ahead: an iterator that a thread runs while its consumer computes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class _Stop(Exception):
    pass


def ahead(items: Iterable[T], depth: int = 4, *, waited: Callable[[float], None] | None = None) -> Iterator[T]:
    """The items in order, up to ``depth`` made ahead by a thread; its error is raised where its item would have come.

    ``waited`` is told the seconds that the consumer had to wait for each.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: Any) -> None:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue
        raise _Stop

    def work() -> None:
        try:
            for item in items:
                put((item, None))
            put((_END, None))
        except _Stop:
            return
        except BaseException as error:  # handed over, whatever it is: codecs have panics of their own
            with contextlib.suppress(_Stop):
                put((_END, error))

    thread = threading.Thread(target=work, name="medmpi-slide-read", daemon=True)
    thread.start()
    try:
        while True:
            start = time.perf_counter()
            item, error = ready.get()
            if waited is not None:
                waited(time.perf_counter() - start)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        closed.set()
        thread.join()
