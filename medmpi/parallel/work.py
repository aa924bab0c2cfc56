"""Items of work that ranks pull one by one, so that a fast rank does more of them than a slow one.

``pull`` hands the items out; ``collect`` also calls a function on each and brings the results to rank 0::

    for slide in pull(world, slides):  # each slide on exactly one rank
        process(slide)

    outcomes = collect(world, score, patches, attempts=3)  # a list in the order of the patches on rank 0, else None

Both are collective and work without MPI. Rank 0 keeps the book and works too: a thread of it answers the others, or,
where MPI allows one thread only, it answers between its own items. What a rank leaves unfinished (it breaks out of the
loop, its function raises, its child process dies, it takes longer than ``lease``) is given to another one.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .child import Child, ChildDied, ChildFailed
from .dispatch import Dispatcher
from .guard import EXIT_WATCHDOG, process_state
from .world import World

T = TypeVar("T")
R = TypeVar("R")
Message = tuple[str, int, Any, bool]  # what happened, to which item, the outcome, whether this rank was asked to stop
_END = -1  # in the place of an item: nothing more comes
_ALIVE = -2  # rank 0 is there but has nothing at present
_SHORTEST, _LONGEST = 2e-5, 2e-3  # seconds between two looks for messages


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one item: its ``value``, or the last attempt's ``error``; the rank and its seconds of work."""

    index: int
    value: R | None
    error: str | None
    rank: int
    seconds: float


class _Server:
    """Rank 0's side: the book, and the messages of the other ranks."""

    def __init__(self, world: World, book: Dispatcher, channel: Any, tag: int, receive: Callable[[Any], None]) -> None:
        self._world, self._book, self._channel, self._tag = world, book, channel, tag
        self._receive = receive
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._mine: deque[int] = deque()  # what rank 0 itself has been given
        self._told = [rank == 0 for rank in range(world.size)]  # who knows that it is over
        self._spoke = time.monotonic()
        self._stopped_since: dict[int, float] = {}
        self._sends: list[Any] = []
        self._thread: threading.Thread | None = None
        if channel is not None:
            from mpi4py import MPI

            self._any, self._status = MPI.ANY_SOURCE, MPI.Status()
            if threaded():
                self._thread = threading.Thread(target=self._serve, name="medmpi work queue", daemon=True)
        self.step()
        if self._thread is not None:
            self._thread.start()

    def _serve(self) -> None:
        pause = _SHORTEST
        while not self._all_told():
            pause = _SHORTEST if self.step() else min(pause * 1.5, _LONGEST)
            time.sleep(pause)

    def _all_told(self) -> bool:
        with self._lock:
            return self._book.over and all(self._told)

    def step(self) -> bool:
        """Reads all messages, hands out what can be; whether there was any."""
        with self._lock:
            heard = False
            while self._channel is not None and self._channel.Iprobe(self._any, self._tag, self._status):
                source = self._status.Get_source()
                self._note(source, self._channel.recv(source=source, tag=self._tag))
                heard = True
            if self._world.stop_requested():
                self._book.stop()
            for worker, item in self._book.assign(time.monotonic()):
                self._give(worker, item)
            if self._book.over:
                for worker, told in enumerate(self._told):
                    if not told and not self._book.held[worker]:
                        self._give(worker, _END)
                        self._told[worker] = True
            self._look_after()
            self._changed.notify_all()
            return heard

    def _note(self, worker: int, message: Message) -> None:
        """Enters what a worker tells: ``done`` or ``failed`` with an item, or that it leaves."""
        what, item, content, stop = message
        now = time.monotonic()
        if stop:
            self._book.stop()
        if what == "leave":
            self._book.leave(worker)
            if worker:
                self._give(worker, _END)  # nothing that is on its way may meet the next queue
                self._told[worker] = True
        elif (what == "done" and self._book.finish(worker, item, now)) or (
            what == "failed" and self._book.fail(worker, item, content.error if content else "", now)
        ):
            self._receive(content)

    def tell(self, message: Message) -> None:
        """As a message from rank 0 to itself."""
        with self._lock:
            self._note(0, message)
        self.step()

    def leave(self, stop: bool) -> None:
        """Rank 0 takes no more; it goes on serving until all others know that it is over."""
        with self._lock:
            self._mine.clear()
            self._note(0, ("leave", _END, None, stop))
            while not self._all_told():
                self._wait()
        if self._thread is not None:
            self._thread.join()
        for send in self._sends:
            send.Wait()

    def _give(self, worker: int, item: int) -> None:
        if worker == 0:
            self._mine.append(item)
            return
        self._sends = [send for send in self._sends if not send.Test()]
        self._sends.append(self._channel.isend((item, self._book.complete), worker, self._tag))

    def next(self) -> int:
        """Rank 0's next item."""
        with self._lock:
            while not self._mine and not self._book.over:
                self._wait()
            return self._mine.popleft() if self._mine else _END

    def _wait(self) -> None:
        if self._thread is not None:
            self._changed.wait(0.2)
        else:
            self.step()
            time.sleep(_LONGEST / 4)

    @property
    def complete(self) -> bool:
        return self._book.complete

    def _look_after(self) -> None:
        """Lets idle ranks know that rank 0 lives, and ends the job when another one can never finish."""
        now = time.monotonic()
        if now - self._spoke < min(1.0, self._world.timeout / 4):
            return
        self._spoke = now
        lines = {line["rank"]: line for line in self._world.group.lines()}
        for worker in range(1, self._world.size):
            if self._told[worker]:
                continue
            held = self._book.held[worker]
            if not held:
                self._give(worker, _ALIVE)
            line = lines.get(worker)
            halted = line is not None and process_state(line["pid"]) in ("T", "t")
            since = self._stopped_since.setdefault(worker, now) if halted else now
            if not halted:
                self._stopped_since.pop(worker, None)
            useless = self._book.over and held and now - self._book.since[worker] > self._world.timeout
            if useless or now - since > self._world.timeout:
                state = " is stopped by a signal and" if halted else ""
                self._world.abort(
                    EXIT_WATCHDOG,
                    f"work queue: rank {worker} on {self._world.hosts[worker]}{state} has not finished item "
                    f"{held[0] if held else '(none)'} for {now - self._book.since[worker]:.1f} s, more than the "
                    f"{self._world.timeout:g} s allowed",
                )


class _Client:
    """The other ranks' side."""

    def __init__(self, world: World, channel: Any, tag: int) -> None:
        self._world, self._channel, self._tag = world, channel, tag
        self.complete = False
        self._ended = False
        self._threaded = threaded()

    def tell(self, message: Message) -> None:
        self._channel.send(message, 0, self._tag)

    def next(self) -> int:
        if self._ended:
            return _END
        pause, heard = _SHORTEST, time.monotonic()
        while True:
            if self._channel.Iprobe(0, self._tag):
                item, self.complete = self._channel.recv(source=0, tag=self._tag)
                if item != _ALIVE:
                    self._ended = item == _END
                    return int(item)
                heard = time.monotonic()
            elif self._threaded and time.monotonic() - heard > self._world.timeout:
                self._world.abort(
                    EXIT_WATCHDOG,
                    f"work queue: rank 0 on {self._world.hosts[0]} has given no sign for "
                    f"{time.monotonic() - heard:.1f} s, more than the {self._world.timeout:g} s allowed",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)

    def leave(self, stop: bool) -> None:
        """This rank takes no more; what is still on its way to it goes to others."""
        if not self._ended:
            self.tell(("leave", _END, None, stop))
        while not self._ended:
            self.next()


def threaded() -> bool:
    """Whether several threads may use MPI at once, so that rank 0 answers while it works."""
    from mpi4py import MPI

    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


class Pull(Generic[T]):
    """The items of ``pull`` as they come to this rank. ``index`` is the number of the present one."""

    def __init__(
        self,
        world: World,
        items: Sequence[T],
        order: Sequence[int],
        attempts: int,
        lease: float | None,
        receive: Callable[[Any], None],
    ) -> None:
        channel, tag = world.channel()
        self._world, self._items = world, items
        self.index = -1
        self._closed = False
        self._side: _Server | _Client
        if world.rank == 0:
            book = Dispatcher(order, world.size, attempts=attempts, lease=lease)
            self._side = _Server(world, book, channel, tag, receive)
        else:
            self._side = _Client(world, channel, tag)

    @property
    def complete(self) -> bool:
        """After the loop: whether all items are finished, on whatever rank; False after a stop on request."""
        return self._side.complete

    def __iter__(self) -> Iterator[T]:
        try:
            while (index := self._take()) != _END:
                self.index = index
                yield self._items[index]
                self.done()
        finally:
            self.close()

    def _take(self) -> int:
        start = time.perf_counter()
        index = self._side.next()
        self._world.seconds["wait"] += time.perf_counter() - start
        return index

    def done(self, content: Any = None) -> None:
        """The present item is finished. The loop says so itself when it comes for the next one."""
        if self.index >= 0:
            self._side.tell(("done", self.index, content, self._world.stop_requested()))
            self.index = -1

    def fail(self, content: Any = None) -> None:
        """The present item went wrong; it is given out again, on whatever rank, until it has had its attempts."""
        if self.index >= 0:
            self._side.tell(("failed", self.index, content, self._world.stop_requested()))
            self.index = -1

    def close(self) -> None:
        """Gives back the item that is not done; on rank 0, waits for the other ranks. The loop does it at its end."""
        if self._closed:
            return
        self._closed = True
        start = time.perf_counter()
        self._side.leave(self._world.stop_requested())
        self._world.seconds["wait"] += time.perf_counter() - start


def pull(
    world: World,
    items: Sequence[T],
    *,
    cost: Callable[[T], float] | None = None,
    attempts: int = 1,
    lease: float | None = None,
) -> Pull[T]:
    """Iterates over ``items``, each of which comes to one rank only, whichever is free. Collective.

    All ranks must give the same items. They go out in order, or dearest first where ``cost`` tells how dear they are
    (then the last ones are short, and all ranks end together). An item counts as done when the loop comes for the next.
    ``lease`` (seconds) lets an item that a rank has been at for longer go to an idle rank too: it must do no harm to
    process it twice. After SIGTERM or SIGUSR1 to any rank the items at hand are finished and no more are given out.
    The loop ends on all ranks when all items are done; only then can ranks meet in other operations.
    """
    _check(attempts, lease)
    return Pull(world, items, _order(items, cost), attempts, lease, lambda content: None)


def collect(
    world: World,
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    cost: Callable[[T], float] | None = None,
    attempts: int = 1,
    lease: float | None = None,
    isolate: bool = False,
    on_result: Callable[[Outcome[R]], None] | None = None,
) -> list[Outcome[R] | None] | None:
    """Calls ``function`` on each item, on whichever rank is free; the outcomes in the order of ``items`` on rank 0.

    Elsewhere None; so are, on rank 0, items that a stop on request left undone. A function that raises makes its item
    fail, on another rank if it can be, up to ``attempts`` times; then the outcome holds the error. ``on_result`` is
    called on rank 0 with each outcome as it arrives, one at a time, from the thread that serves: it should be brief.
    ``isolate`` runs the function in a child process of each rank, so that an item that crashes it (a codec that
    segfaults, the kernel's out-of-memory killer) costs an attempt and not the job; function and items must be
    importable and picklable then, and the function must not use MPI. Otherwise as ``pull``.
    """
    _check(attempts, lease)
    found: list[Outcome[R] | None] = [None] * len(items)

    def receive(outcome: Outcome[R]) -> None:
        found[outcome.index] = outcome
        if on_result is not None:
            on_result(outcome)

    child = Child(function) if isolate else None
    call: Callable[[T], R] = child if child is not None else function
    work = Pull(world, items, _order(items, cost), attempts, lease, receive)
    try:
        for item in work:
            start, index = time.perf_counter(), work.index
            try:
                value = call(item)
            except (ChildDied, ChildFailed) as error:
                work.fail(Outcome(index, None, str(error), world.rank, time.perf_counter() - start))
            except Exception:
                text = traceback.format_exc()
                work.fail(Outcome(index, None, text, world.rank, time.perf_counter() - start))
            else:
                work.done(Outcome(index, value, None, world.rank, time.perf_counter() - start))
    finally:
        work.close()
        if child is not None:
            child.close()
    return found if world.rank == 0 else None


def _order(items: Sequence[T], cost: Callable[[T], float] | None) -> list[int]:
    order = list(range(len(items)))
    if cost is not None:
        costs = [float(cost(item)) for item in items]
        order.sort(key=lambda i: -costs[i])
    return order


def _check(attempts: int, lease: float | None) -> None:
    if attempts < 1:
        raise ValueError(f"work queue: attempts is {attempts}, expected 1 or more")
    if lease is not None and not lease > 0:
        raise ValueError(f"work queue: lease is {lease}, expected seconds above 0")
