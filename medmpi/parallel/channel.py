"""Arrays between two ranks of a world, in order, while both go on computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import Array, empty
from .world import World


class Channel:
    """One direction from or to the rank ``peer`` of ``world``; ``what`` names it in the watchdog's messages.

    ``send`` returns at once; the arrays must not change until ``finish``. ``expect`` makes room for the next group of
    arrays and lets them come while this rank computes, ``receive`` waits for the oldest group expected. MPI makes no
    progress by itself, so call ``poll`` now and then.
    """

    def __init__(self, world: World, peer: int, what: str, tag: int) -> None:
        self._world, self._peer, self._what, self._tag = world, peer, what, tag
        self._sent: deque[tuple[Any, NDArray[Any]]] = deque()
        self._expected: deque[tuple[list[Any], tuple[Array, ...]]] = deque()

    def send(self, arrays: Sequence[Array]) -> None:
        """Begins to send; shapes and their number are known to the peer."""
        self.poll()
        for array in arrays:
            flat = np.ascontiguousarray(array)
            self._sent.append((self._world.comm.Isend(flat, self._peer, self._tag), flat))

    def expect(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Posts the receives of one group of arrays."""
        arrays = tuple(empty(shape) for shape in shapes)
        requests = [self._world.comm.Irecv(array, self._peer, self._tag) for array in arrays]
        self._expected.append((requests, arrays))

    def receive(self) -> tuple[Array, ...]:
        """The arrays of the oldest ``expect``."""
        requests, arrays = self._expected.popleft()
        self._world.wait_for(requests, self._peer, f"receive {self._what}")
        return arrays

    def poll(self) -> None:
        """Lets MPI make progress, and forgets what has been delivered."""
        while self._sent and self._sent[0][0].Test():
            self._sent.popleft()
        for requests, _ in self._expected:
            for request in requests:
                request.Test()

    def finish(self) -> None:
        """Waits until all that was sent is delivered."""
        self._world.wait_for([request for request, _ in self._sent], self._peer, f"send {self._what}")
        self._sent.clear()
