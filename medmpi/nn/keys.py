"""Keys of random numbers in device memory, where work that is captured once finds those of each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from .layer import Context

_MOST = 256


class DeviceKeys:
    """The keys that layers ask for in one pass, in the order in which they ask; every pass asks for the same.

    ``begin(context)`` writes those of a step, before the pass or the launch of its graph.
    """

    def __init__(self) -> None:
        self._keys = K.empty((_MOST, 2), np.int64, device="cuda")
        self._asked: list[tuple[str, int, int]] = []  # layer, first sample within the pass, elements of a sample
        self._next = 0
        self._context = Context()

    def begin(self, context: Context) -> None:
        """The pass of a step, whose samples begin at ``context.first_sample``."""
        self._next, self._context = 0, context
        if self._asked:
            self._keys[: len(self._asked)] = np.array([self._key(i) for i in range(len(self._asked))], np.int64)

    def take(self, context: Context, name: str, per_sample: int) -> NDArray[np.int64]:
        """Seed and offset of the layer ``name`` for samples of so many elements: int64 (2,) on the device."""
        i = self._next
        self._next += 1
        entry = name, context.first_sample - self._context.first_sample, per_sample
        if i == _MOST:
            raise RuntimeError(f"{name}: more than {_MOST} keys in a pass, expected fewer layers with dropout")
        if i == len(self._asked):
            self._asked.append(entry)
            self._keys[i] = self._key(i)
        elif self._asked[i] != entry:
            self._asked[i] = entry
            self._keys[i] = self._key(i)
        return self._keys[i]  # type: ignore[no-any-return]

    def _key(self, i: int) -> NDArray[np.int64]:
        name, first, per_sample = self._asked[i]
        return np.array([self._context.key(name), (self._context.first_sample + first) * per_sample], np.int64)
