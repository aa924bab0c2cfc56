"""Batches read, augmented and normalised by threads ahead of the step that needs them.

Threads, not processes: reading, decoding and numpy's loops release the GIL, a fork after MPI_Init is unsafe, and an
array handed over is not copied. Which thread makes a batch has no influence on it, and batches come in the order given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels

from .dataset import Split
from .normalise import normalise
from .partition import Ids
from .source import Images

Transform: TypeAlias = Callable[[Images, Images | None, Ids], tuple[Images, Images | None]]
Finish: TypeAlias = Callable[[Images, NDArray[Any], Ids], "Batch"]


@dataclass(frozen=True)
class Batch:
    """``images`` float32 (n, h, w, c), normalised, in pooled memory; ``labels`` int64 (n,) or (n, h, w); ``ids``.

    Where a device has ``images``, ``device_labels`` may hold the labels there.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: Ids
    device_labels: NDArray[np.int64] | None = None


class Loader:
    """Iterates once over the batches of ``split`` that ``batches`` lists, in that order.

    ``threads`` fill at most ``depth`` batches ahead of the consumer, from construction on, so a loader made early has
    its first batch ready; with 0 threads the consumer makes each batch itself. ``transform(images, masks, ids)`` works
    on uint8 (masks is None for classification); ``finish(images, targets, ids)`` then makes the batch, in the same
    thread (default: of normalised images). An error in a thread is raised in the consumer where its batch would
    have come. ``close`` (also by ``with``, by an error and at the end) stops the threads after the batch they are at;
    so does dropping the loader.
    """

    def __init__(
        self,
        split: Split,
        batches: Sequence[Ids],
        *,
        transform: Transform | None = None,
        finish: Finish | None = None,
        threads: int = 2,
        depth: int = 4,
    ) -> None:
        if threads < 0 or depth < 1:
            raise ValueError(f"Loader: threads is {threads} and depth {depth}, expected threads >= 0 and depth >= 1")
        # The threads know the ring alone: were it the loader, they would keep a forgotten one alive for ever.
        self._ring = _Ring(split, batches, transform, finish, depth)
        self._wait_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._ring.work, name=f"medmpi-loader-{i}", daemon=True)
            for i in range(min(threads, depth, len(batches)))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def wait_seconds(self) -> float:
        """How long the consumer has waited for batches."""
        return self._wait_seconds

    @property
    def ready(self) -> bool:
        """Whether the next batch can be had without waiting."""
        with self._ring.changed:
            return self._ring.taken in self._ring.ready

    @property
    def busy_seconds(self) -> float:
        """How long making the batches has taken, summed over the threads."""
        return self._ring.busy_seconds

    def __len__(self) -> int:
        return len(self._ring.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; StopIteration after the last one or after ``close``."""
        start = time.perf_counter()
        try:
            made = self._ring.take() if self._threads else self._ring.make_next()
        finally:
            self._wait_seconds += time.perf_counter() - start
        if isinstance(made, BaseException):
            self.close()
            raise made
        if made is None:
            # Where another thread is closing, that one joins: the consumer must not wait for a slow file.
            if not self._ring.closed:
                self.close()
            raise StopIteration
        return made

    def close(self) -> None:
        """Stop the threads and drop what they have made. May be called again, and from another thread."""
        self._ring.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        ring = getattr(self, "_ring", None)  # Absent where construction failed.
        if ring is not None:
            ring.stop()


class _Ring:
    """The batches between the threads that make them and the consumer that takes them."""

    def __init__(
        self, split: Split, batches: Sequence[Ids], transform: Transform | None, finish: Finish | None, depth: int
    ) -> None:
        self.split, self.batches, self.transform, self.depth = split, batches, transform, depth
        self.finish = finish or self._normalised
        self.changed = threading.Condition()
        self.ready: dict[int, Batch | BaseException] = {}
        self.claimed = 0  # The next batch that a thread will make.
        self.taken = 0  # The next batch that the consumer will get.
        self.closed = False
        self.busy_seconds = 0.0

    def take(self) -> Batch | BaseException | None:
        """The next batch once a thread has made it; None at the end."""
        with self.changed:
            if self.closed or self.taken == len(self.batches):
                return None
            self.changed.wait_for(lambda: self.taken in self.ready or self.closed)
            made = self.ready.pop(self.taken, None)
            self.taken += 1
            self.changed.notify_all()
            return made

    def make_next(self) -> Batch | BaseException | None:
        """The next batch made here and now."""
        if self.closed or self.taken == len(self.batches):
            return None
        self.taken += 1
        return self._guarded(self.taken - 1)

    def stop(self) -> None:
        with self.changed:
            self.closed = True
            self.ready.clear()
            self.changed.notify_all()

    def work(self) -> None:
        """What a thread does: the next batch that nobody has claimed, as long as there is room."""
        # The consumer's step has the cores: a kernel called here must not open a team of its own.
        kernels.set_threads(1)
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.claimed < self.taken + self.depth)
                if self.closed or self.claimed == len(self.batches):
                    return
                index = self.claimed
                self.claimed += 1
            made = self._guarded(index)
            with self.changed:
                if self.closed:
                    return
                self.ready[index] = made
                self.changed.notify_all()
            if isinstance(made, BaseException):
                return

    def _guarded(self, index: int) -> Batch | BaseException:
        start = time.perf_counter()
        try:
            return self._make(self.batches[index])
        except BaseException as error:
            error.add_note(f"while loading batch {index} of the {self.split.name} split")
            return error
        finally:
            with self.changed:
                self.busy_seconds += time.perf_counter() - start

    def _make(self, ids: Ids) -> Batch:
        images, targets = self.split.read(ids)
        masks = targets if targets.ndim > 1 else None
        if self.transform is not None:
            images, masks = self.transform(images, masks, ids)
        return self.finish(images, targets if masks is None else masks, ids)

    def _normalised(self, images: Images, targets: NDArray[Any], ids: Ids) -> Batch:
        normal = normalise(images, self.split.mean, self.split.std)
        return Batch(normal, targets.astype(np.int64, copy=False), ids)
