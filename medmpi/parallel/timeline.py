"""What a rank did when, for chrome://tracing and https://ui.perfetto.dev."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .world import World


class Timeline:
    """Spans of this rank; ``merged`` brings those of all ranks together. Collective to make and to merge.

    Clocks begin together, so spans of ranks on different machines fit to about the time a barrier takes. Waiting and
    work inside collective operations of ``world`` are recorded by themselves.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.events: list[dict[str, Any]] = []
        world.barrier("begin the timeline")
        self._zero = time.perf_counter()
        world.observers.append(self._collective)

    @contextmanager
    def span(self, name: str, kind: str) -> Iterator[None]:
        """Records the time inside under a name and a kind of time (comp, comm, wait, io)."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.note(name, kind, start, time.perf_counter())

    def note(self, name: str, kind: str, start: float, end: float) -> None:
        """Records a span between two values of ``time.perf_counter()``."""
        self.events.append(
            {
                "name": name,
                "cat": kind,
                "ph": "X",
                "ts": round(1e6 * (start - self._zero), 3),
                "dur": round(1e6 * (end - start), 3),
                "pid": self._world.rank,
                "tid": 0,
            }
        )

    def _collective(self, operation: str, comm: float, wait: float) -> None:
        end = time.perf_counter()
        if wait > 0:
            self.note(f"wait: {operation}", "wait", end - comm - wait, end - comm)
        if comm > 0:
            self.note(operation, "comm", end - comm, end)

    def close(self) -> None:
        """Records no more of what collective operations take."""
        self._world.observers.remove(self._collective)

    def merged(self) -> str | None:
        """The trace of all ranks in the Trace Event Format, on rank 0; None elsewhere."""
        self.close()
        names = [
            {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank} on {host}"}}
            for rank, host in enumerate(self._world.hosts)
        ]
        found = self._world.gather(self.events, operation="gather the timeline")
        if found is None:
            return None
        return json.dumps({"traceEvents": names + [e for events in found for e in events], "displayTimeUnit": "ms"})
