"""The ranks of a job and what they do together."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import Array
from ..kernels.collective import RankGroup, merge_statistics_of, yield_core
from .guard import EXIT_USAGE, Guard, exit_number, host_name
from .memory import Segments, share
from .watch import Watch

T = TypeVar("T")
_SLOT = 1 << 17  # bytes of one rank's part of a small operation; longer arrays go in pieces


class Patience(NamedTuple):
    """Seconds after which a waiting rank calls the system to let others run, and after which it sleeps meanwhile.

    A core that has slept for milliseconds is slow for a tenth of a second after; but where ranks share a core, one that
    does not sleep takes it from whoever is late.
    """

    spin: float
    sleep: float


CROWDED, ROOMY = Patience(1e-6, 2e-3), Patience(5e-5, 1.0)


class World:
    """All ranks, their nodes, and collective operations, each of which all ranks must call in the same order.

    Every operation is guarded: a rank that fails, hangs, dies or leaves meanwhile ends the job with an error.
    ``seconds`` adds up the time spent in them: ``comm`` for the work, ``wait`` for ranks that came later.
    With ``reproducible`` set (on all ranks) sums over nodes keep the order of the nodes as well, which costs time.
    ``place`` is how far the program is ("epoch 2, step 31"); messages about failures say it.
    ``comm`` is the mpi4py communicator, None where MPI is not in use (then ``size`` is 1).
    """

    def __init__(
        self,
        comm: Any,
        guard: Guard,
        *,
        timeout: float,
        node_key: object = 0,
        library: str = "none",
        patience: Patience = CROWDED,
    ) -> None:
        self.comm, self._guard, self.timeout, self.library = comm, guard, timeout, library
        self.rank: int = comm.rank if comm else 0
        self.size: int = comm.size if comm else 1
        self.shared_memory_problem = ""
        self._patience = patience
        self._join_node(node_key)
        self.group.set_patience(*patience)
        self.hosts: list[str] = self.comm.allgather(host_name()) if comm else [host_name()]
        self.seconds = {"comm": 0.0, "wait": 0.0}
        self.reproducible = False
        self.observers: list[Callable[[str, float, float], None]] = []  # told of operation, comm and wait seconds
        self.place = ""  # how far the program is, for messages about failures
        self._segments: list[Segments] = []
        self._channel: Any = None
        self._channels = 0
        self._watch = Watch(self)
        guard.groups.append(self._watch)

    def _join_node(self, key: object) -> None:
        """Finds the ranks with the same key and the memory they meet in."""
        if self.comm is None:
            self.node, self.nodes, self.local_rank, self.local_size = 0, 1, 0, 1
            self.local_comm = self.leaders = None
            self.node_ranks = [[0]]
            self._page = share(None, RankGroup.bytes(1, _SLOT))
        else:
            from mpi4py import MPI

            while True:
                keys = self.comm.allgather(key)
                order = list(dict.fromkeys(keys))
                self.node, self.nodes = order.index(key), len(order)
                self.node_ranks = [[r for r, k in enumerate(keys) if k == other] for other in order]
                self.local_comm = self.comm.Split(self.node, self.rank)
                self.local_rank, self.local_size = self.local_comm.rank, self.local_comm.size
                problem = ""
                try:
                    self._page = share(self.local_comm, RankGroup.bytes(self.local_size, _SLOT))
                except OSError as error:
                    problem, key = str(error), ("alone", self.rank)
                problems = [p for p in self.comm.allgather(problem) if p]
                if not problems:
                    break
                self.local_comm.Free()
                self.shared_memory_problem = problems[0]
            self.leaders = self.comm.Split(0 if self.local_rank == 0 else MPI.UNDEFINED, self.rank)
            if self.leaders == MPI.COMM_NULL:
                self.leaders = None
        self.group = RankGroup(self._page, self.local_rank, self.local_size, _SLOT, self.rank)

    # -- guarding ----------------------------------------------------------------------------------------------------

    @contextmanager
    def guard(self, operation: str) -> Iterator[None]:
        """Watches a collective operation that is not one of this class: all ranks must enter it, in the same order."""
        self.group.enter(operation)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.charge(time.perf_counter() - start, 0.0, operation)
            self.group.leave()

    @contextmanager
    def _together(self, operation: str) -> Iterator[None]:
        """As guard, for operations in which ranks first meet: what one waits there for later ones counts as waiting.

        Between nodes that costs a barrier, about as much as a small exchange itself.
        """
        if self.nodes == 1:
            self.charge(0.0, self.group.barrier(operation), operation)
            with self.guard(operation):
                yield
            return
        self.group.enter(operation)
        try:
            start = time.perf_counter()
            self.comm.Barrier()
            arrived = time.perf_counter()
            yield
            self.charge(time.perf_counter() - arrived, arrived - start, operation)
        finally:
            self.group.leave()

    def wait_for(self, requests: list[Any], peer: int, operation: str) -> None:
        """Waits for messages to or from the rank ``peer``; the watchdog names it when it does not come."""
        from mpi4py import MPI

        if MPI.Request.Testall(requests):
            return
        start = time.perf_counter()
        self._watch.peer = peer
        self.group.enter(operation)
        try:
            while not MPI.Request.Testall(requests):
                waited = time.perf_counter() - start
                if waited > self._patience.sleep:
                    time.sleep(5e-5 if waited < 2e-2 else 2e-4)
                elif waited > self._patience.spin:
                    yield_core()
        finally:
            self.group.leave()
            self._watch.peer = None
            self.charge(0.0, time.perf_counter() - start, operation)

    def abort(self, code: int, message: str = "ended on request") -> None:
        """Ends all ranks with this exit code. Never returns."""
        self._guard.abort(code, message)

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop (SIGTERM, SIGUSR1). Agree on it with ``any`` before acting on it."""
        return self._guard.stop

    def request_stop(self) -> None:
        """What SIGTERM and SIGUSR1 do."""
        self._guard.stop = True

    # -- collective operations ---------------------------------------------------------------------------------------

    def barrier(self, operation: str = "barrier") -> None:
        """Waits for all ranks."""
        if self.nodes == 1:
            self.charge(0.0, self.group.barrier(operation), operation)
        else:
            with self._together(operation):
                pass

    def sum(self, array: NDArray[Any], operation: str = "sum") -> NDArray[Any]:
        """Adds the ranks' arrays (float32, float64 or int64, contiguous) in place, in rank order, and returns it.

        The same bits on every run and every MPI. Between nodes arrays of ``allocate`` are the exception: their sums are
        in rank order inside a node and, unless ``reproducible``, in MPI's order between nodes.
        """
        if array.dtype not in (np.float32, np.float64, np.int64) or not array.flags.c_contiguous:
            raise TypeError(
                f"sum: array is {array.dtype}{'' if array.flags.c_contiguous else ', not contiguous'}, "
                "expected a contiguous float32, float64 or int64 array"
            )
        if self.size == 1:
            return array
        where = self.find(array)
        if where is not None:
            self._sum_shared(array, *where, operation)
        elif self.nodes == 1:
            start = time.perf_counter()
            waited = self.group.sum(array, operation)
            self.charge(time.perf_counter() - start - waited, waited, operation)
        else:
            with self._together(operation):
                self._sum_in_order(array.reshape(-1), self.comm)
        return array

    def start_sum(self, array: NDArray[np.float64], operation: str = "sum") -> Callable[[], NDArray[np.float64]]:
        """Begins ``sum`` of a small float64 array; the call that it returns waits for the other ranks and completes it.

        Work that needs nobody fits in between, so that a rank waits only for those that are later than its end. No
        other collective operation may come between but those of ``GradientBuckets.done``.
        """
        if self.size == 1:
            return lambda: array
        if self.nodes > 1 or array.nbytes > _SLOT:
            return lambda: self.sum(array, operation)
        self.group.start_sum(array, operation)

        def finish() -> NDArray[np.float64]:
            start = time.perf_counter()
            waited = self.group.finish_sum(array, operation)
            self.charge(time.perf_counter() - start - waited, waited, operation)
            return array

        return finish

    def sum_over_nodes(self, flat: NDArray[Any]) -> None:
        """Adds the arrays of the nodes' first ranks in place; the other ranks do nothing."""
        if self.leaders is None or self.nodes == 1:
            return
        if self.reproducible:
            self._sum_in_order(flat, self.leaders)
        else:
            from mpi4py import MPI

            self.leaders.Allreduce(MPI.IN_PLACE, flat)

    def _sum_shared(self, array: NDArray[Any], segments: Segments, offset: int, operation: str) -> None:
        addresses = [a + 4 * offset for a in segments.addresses]
        targets = self.local_size if self.nodes == 1 else 1
        self.charge(*self.group.sum_segments(addresses, array.size, targets, operation), operation)
        if self.nodes > 1:
            with self.guard(operation):
                first = segments.of(0)[offset : offset + array.size]
                self.sum_over_nodes(first)
                self.group.barrier(operation)
                if self.local_rank:
                    np.copyto(array.reshape(-1), first)
                self.group.barrier(operation)  # the leader must not change its array before all have it

    @staticmethod
    def _sum_in_order(flat: NDArray[Any], comm: Any) -> None:
        step = (1 << 20) // flat.itemsize
        for at in range(0, flat.size, step):
            part = flat[at : at + step]
            all_parts = np.empty((comm.size, part.size), part.dtype)
            comm.Allgather(part, all_parts)
            part[:] = all_parts[0]
            for other in all_parts[1:]:
                part += other

    def merge_statistics(
        self,
        count: int,
        mean: NDArray[np.float64],
        m2: NDArray[np.float64],
        all_mean: NDArray[np.float64],
        all_m2: NDArray[np.float64],
    ) -> int:
        """Merges the ranks' counts, means and sums of squared deviations; fills the last two, returns the count."""
        if self.nodes == 1:
            start = time.perf_counter()
            total, waited = self.group.merge_statistics(count, mean, m2, all_mean, all_m2, "merge batch statistics")
            self.charge(time.perf_counter() - start - waited, waited, "merge batch statistics")
            return int(total)
        mine = np.concatenate([[float(count)], mean, m2])
        parts = np.empty((self.size, mine.size))
        with self._together("merge batch statistics"):
            self.comm.Allgather(mine, parts)
        return int(merge_statistics_of(parts, all_mean, all_m2))

    def any(self, flag: bool, operation: str = "any") -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return bool(flag)
        flags = np.array([flag], np.int64)
        return bool(self.sum(flags, operation)[0])

    def broadcast(self, obj: T, root: int = 0, operation: str = "broadcast") -> T:
        """Rank ``root``'s object on all ranks."""
        if self.size == 1:
            return obj
        with self._together(operation):
            result: T = self.comm.bcast(obj, root)
        return result

    def broadcast_array(self, array: NDArray[Any], root: int = 0, operation: str = "broadcast") -> NDArray[Any]:
        """Fills ``array`` with that of rank ``root`` and returns it."""
        if self.size > 1:
            with self._together(operation):
                for at in range(0, array.size, 1 << 28):  # counts stay below 2^31
                    self.comm.Bcast(array.reshape(-1)[at : at + (1 << 28)], root)
        return array

    def gather(self, obj: T, root: int = 0, operation: str = "gather") -> list[T] | None:
        """All ranks' objects in rank order on rank ``root``, None elsewhere."""
        if self.size == 1:
            return [obj]
        with self._together(operation):
            result: list[T] | None = self.comm.gather(obj, root)
        return result

    def allgather(self, obj: T, operation: str = "allgather") -> list[T]:
        """All ranks' objects in rank order."""
        if self.size == 1:
            return [obj]
        with self._together(operation):
            result: list[T] = self.comm.allgather(obj)
        return result

    def agree(self, what: Mapping[str, object], operation: str = "compare settings") -> None:
        """Ends all ranks with exit code 2 unless the values are equal on all of them; shows values and ranks."""
        complaints = differences(self.allgather({k: repr(v) for k, v in what.items()}, operation))
        if complaints:
            if self.rank == 0:
                sys.stderr.write("medmpi: the ranks do not agree\n" + "".join(f"  {line}\n" for line in complaints))
                sys.stderr.flush()
            self._guard.exit_code = EXIT_USAGE
            raise SystemExit(EXIT_USAGE)

    # -- shared memory -----------------------------------------------------------------------------------------------

    def allocate(self, n: int) -> Array:
        """A zeroed float32 array of ``n`` elements that ``sum`` and ``GradientBuckets`` reduce where it lies.

        Collective; ValueError on all ranks when they ask for different sizes. Its memory goes when the array dies.
        """
        if self.size > 1:
            sizes = self.allgather(n, "allocate")
            if len(set(sizes)) > 1:
                raise ValueError(f"allocate: n is {sizes} on the ranks, expected the same on all")
        self._segments = [s for s in self._segments if s.in_use]
        segments = Segments(self.local_comm, self.local_rank, self.local_size, n)
        self._segments.append(segments)
        return segments.lend(self.local_rank)

    def find(self, array: NDArray[Any]) -> tuple[Segments, int] | None:
        """The segments that ``array`` lies in and where it starts there; None when it is not from ``allocate``."""
        for segments in self._segments:
            offset = segments.offset_of(array)
            if offset is not None:
                return segments, offset
        return None

    def split(self, color: int, key: int | None = None) -> World:
        """A world of the ranks with the same color, ordered by ``key`` (this rank's number by default). Collective."""
        if self.comm is None:
            return World(None, self._guard, timeout=self.timeout, library=self.library)
        with self.guard("split"):
            comm = self.comm.Split(color, self.rank if key is None else key)
            return World(
                comm,
                self._guard,
                timeout=self.timeout,
                node_key=self.node,
                library=self.library,
                patience=self._patience,
            )

    def channel(self) -> tuple[Any, int]:
        """A communicator for messages outside collective operations and a tag for this use of it. Collective.

        (None, 0) where there is no MPI.
        """
        if self.comm is None:
            return None, 0
        if self._channel is None:
            with self.guard("open a channel"):
                self._channel = self.comm.Dup()
        self._channels += 1
        return self._channel, self._channels % (1 << 14)

    def charge(self, comm: float, wait: float, operation: str) -> None:
        """Adds to ``seconds`` what an operation has taken."""
        self.seconds["comm"] += comm
        self.seconds["wait"] += wait
        for observer in self.observers:
            observer(operation, comm, wait)

    # -- ending ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stops watching. Collective; only programs that start several worlds in turn need it."""
        if self._watch in self._guard.groups:
            self.barrier("close")
            self._guard.groups.remove(self._watch)
            for comm in (self._channel, self.local_comm, self.leaders, self.comm):
                if comm is not None:
                    comm.Free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(value, SystemExit):
            self._guard.exit_code = exit_number(value.code)


def differences(values: list[dict[str, str]]) -> list[str]:
    """One line for each key whose value is not the same on all ranks: which ranks have which value."""
    lines = []
    for key in sorted({k for v in values for k in v}):
        ranks: dict[str, list[int]] = {}
        for rank, value in enumerate(values):
            ranks.setdefault(value.get(key, "(not set)"), []).append(rank)
        if len(ranks) > 1:
            held = (f"{v} on rank{'s' if len(r) > 1 else ''} {', '.join(map(str, r))}" for v, r in ranks.items())
            lines.append(f"{key}: {', '.join(held)}")
    return lines
