"""What follows the run's own feedback besides the schedule: the batch of an update, and the rate by gradient noise.

An update adds up the gradients of ``accumulate`` batches, so its batch can grow without needing more memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import nn
from medmpi.kernels.arrays import Array, to_host
from medmpi.train.options import Options

_LEAST_GAIN = 0.01  # of the rate by gradient noise


@dataclass(frozen=True)
class Place:
    """Where a batch stands among those of its update."""

    begins: bool
    ends: bool
    images: int  # of the whole update


class Adaptation:
    """Decides how many batches make an update, and what gradient noise does to the rate.

    The same on all ranks: it sees reduced gradients and the validation loss only.
    """

    def __init__(self, options: Options, n: int) -> None:
        self._options = options
        self.accumulate = options.accumulate
        wanted = options.schedule == "noise" or options.grow_batch == "noise"
        self.noise = nn.GradientNoise(n) if wanted else None
        self._best, self._stale = math.inf, 0
        self._first_ratio: float | None = None
        self._gain = 1.0

    def place(self, sizes: list[int], i: int, first: int, last: int) -> Place:
        """Batch ``i`` of an epoch with these sizes, of which those from ``first`` to ``last`` are trained on."""
        begin = max(first, i // self.accumulate * self.accumulate)
        end = min((i // self.accumulate + 1) * self.accumulate, last)
        return Place(i == begin, i == end - 1, sum(sizes[begin:end]))

    @property
    def batch(self) -> int:
        """Images of a full update."""
        return self._options.batch_size * self.accumulate

    @property
    def noise_scale(self) -> float | None:
        """The measured noise scale in images; None where it is not measured."""
        return None if self.noise is None else self.noise.scale(self.batch)

    def gain(self) -> float:
        """What the rate is multiplied by: with ``--schedule noise`` as in McCandlish et al. 2018, eq. 2.9.

        The best rate goes with 1 / (1 + noise scale / batch); the given one is taken to be best where warm-up ends.
        """
        return self._gain

    def updated(self, gradient: Array, *, warm: bool) -> None:
        """An update's gradient; ``warm`` once warm-up is over."""
        if self.noise is None:
            return
        self.noise.observe(to_host(gradient))
        scale = self.noise_scale
        if self._options.schedule == "noise" and warm and scale is not None:
            ratio = 1 + scale / self.batch
            if self._first_ratio is None:
                self._first_ratio = ratio
            self._gain = min(1.0, max(_LEAST_GAIN, self._first_ratio / ratio))

    def observe(self, loss: float) -> str | None:
        """The validation loss at the end of an epoch; what was changed, for the user."""
        better = loss < self._best * (1 - 1e-4)
        self._best, self._stale = (loss, 0) if better else (self._best, self._stale + 1)
        if self._options.grow_batch == "none" or 2 * self.accumulate > self._options.max_accumulate:
            return None
        if self._options.grow_batch == "noise":
            scale = self.noise_scale
            if scale is None or scale < 2 * self.batch:
                return None
            why = f"the gradients' noise scale is {scale:,.0f} images"
        else:
            if self._stale <= self._options.patience:
                return None
            why, self._stale = f"no progress for {self._stale} epochs", 0
        self.accumulate *= 2
        return f"{why}: {self.accumulate} batches, {self.batch} images per update from now on"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, besides ``arrays``; as JSON can hold it."""
        return {
            "accumulate": self.accumulate,
            "best": None if math.isinf(self._best) else self._best,
            "stale": self._stale,
            "first_ratio": self._first_ratio,
            "gain": self._gain,
            "noise": None if self.noise is None else self.noise.state_dict(),
        }

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The larger part of the state."""
        return {} if self.noise is None else {"noise/mean": self.noise.mean}

    def load_state_dict(self, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Restores both; settings changed since then take effect."""
        if state["accumulate"] % self._options.accumulate == 0 and self._options.grow_batch != "none":
            self.accumulate = int(state["accumulate"])
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._stale, self._first_ratio, self._gain = int(state["stale"]), state["first_ratio"], float(state["gain"])
        if self.noise is not None and state["noise"] is not None and "noise/mean" in arrays:
            self.noise.load_state_dict(state["noise"], arrays["noise/mean"])
