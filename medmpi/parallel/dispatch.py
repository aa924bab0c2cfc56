"""Which worker gets which item next: the book-keeping behind ``work``, with no messages and no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

AHEAD = 2  # items in hand of a worker, the one it is at included, while plenty are left


class Dispatcher:
    """Items ``0 .. n-1`` on their way to workers, each finished once, however often it has to be given out.

    A worker gets its next item while it is still at the one before, so that it never waits for a message; near the end,
    where that would leave items with a busy worker while others are idle, only when it is idle. With ``lease`` set an
    item that a worker has been at for longer is given to an idle one too, and the first to finish it counts. An item
    that failed is given out again, to a worker that has not tried it if there is one, until it has had ``attempts``.
    """

    def __init__(self, order: Iterable[int], workers: int, *, attempts: int = 1, lease: float | None = None) -> None:
        self.pending = deque(order)
        self.total = len(self.pending)
        self.attempts, self.lease = attempts, lease
        self.held: list[deque[int]] = [deque() for _ in range(workers)]
        self.since = [0.0] * workers  # when the worker began its first item in hand
        self.gone = [False] * workers
        self.hungry = set(range(workers))  # who has less than AHEAD in hand
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        self.tries: dict[int, list[int]] = {}  # the workers at which an item went wrong
        self.again: list[int] = []  # such items, to be given out after all others
        self.lent: set[int] = set()  # given to a second worker because the first takes too long
        self.stopped = False

    @property
    def complete(self) -> bool:
        """Whether every item is finished or has failed for good."""
        return len(self.done) + len(self.failed) == self.total

    @property
    def over(self) -> bool:
        """Whether nothing is left to give out or to wait for."""
        if self.complete or all(self.gone):
            return True
        return self.stopped and not any(held for held, gone in zip(self.held, self.gone, strict=True) if not gone)

    def finish(self, worker: int, item: int, now: float) -> bool:
        """The worker has finished the item. Whether it is the first to do so."""
        self._drop(worker, item, now)
        first = item not in self.done
        self.done.add(item)
        self.failed.pop(item, None)
        return first

    def fail(self, worker: int, item: int, why: str, now: float) -> bool:
        """The item went wrong at the worker. Whether that was its last attempt."""
        self._drop(worker, item, now)
        self.tries.setdefault(item, []).append(worker)
        if item in self.done:
            return False
        if len(self.tries[item]) >= self.attempts:
            self.failed[item] = why
            return True
        self.again.append(item)
        return False

    def leave(self, worker: int) -> None:
        """The worker takes nothing more; what it has in hand goes to others, first of all."""
        self.gone[worker] = True
        self.hungry.discard(worker)
        self.pending.extendleft(reversed(self.held[worker]))
        self.held[worker].clear()

    def stop(self) -> None:
        """Nothing more is given out."""
        self.stopped = True

    def assign(self, now: float) -> list[tuple[int, int]]:
        """(worker, item) pairs to send."""
        if self.stopped:
            return []
        sent = []
        present = self.gone.count(False)
        for worker in sorted(self.hungry, key=lambda w: len(self.held[w])):  # the idle ones first
            held = self.held[worker]
            while len(held) < AHEAD and (not held or len(self.pending) > AHEAD * present):
                item = self._next(worker, now)
                if item is None:
                    break
                if not held:
                    self.since[worker] = now
                held.append(item)
                sent.append((worker, item))
            if len(held) == AHEAD:
                self.hungry.discard(worker)
        return sent

    def _next(self, worker: int, now: float) -> int | None:
        while self.pending:
            item = self.pending.popleft()
            if item not in self.done:
                return item
        present = {w for w, gone in enumerate(self.gone) if not gone}
        for item in self.again:
            if worker not in self.tries[item] or present <= set(self.tries[item]):
                self.again.remove(item)
                return item
        if self.lease is not None:
            for other, held in enumerate(self.held):
                if held and now - self.since[other] > self.lease:
                    for item in held:
                        if item not in self.lent and item not in self.done:
                            self.lent.add(item)
                            return item
        return None

    def _drop(self, worker: int, item: int, now: float) -> None:
        if item in self.held[worker]:
            self.held[worker].remove(item)
            self.hungry.add(worker)
            self.since[worker] = now
