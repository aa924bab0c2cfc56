"""How noisy gradients are, measured while training (McCandlish, Kaplan, Amodei: "An empirical model of large-batch
training", arXiv 1812.06162).

Their simple noise scale tr(S) / |G|^2 (eq. 2.8), S the covariance of one sample's gradient and G the true gradient, is
the batch size beyond which more samples per update hardly make an update better. They compare gradients of two batch
sizes; here one gradient is compared with the running mean of those before, so that the estimate is a function of the
updates alone and not of how many ranks there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array

_MEMORY = 0.9  # of the running mean of gradients
_SMOOTHING = 0.95  # of the squared norms, which vary more than they change


class GradientNoise:
    """Observes the gradient of each update, float32 (n,)."""

    def __init__(self, n: int) -> None:
        self.mean: Array = np.zeros(n, np.float32)
        self.updates = 0
        self._of_gradient = self._of_mean = 0.0

    def observe(self, gradient: Array) -> None:
        """The gradient of an update, before clipping; ignored where it is not finite."""
        square = K.sum_squares(gradient)
        if not np.isfinite(square):
            return
        self.mean *= np.float32(_MEMORY)
        self.mean += np.float32(1 - _MEMORY) * gradient
        self.updates += 1
        started = 1 - _MEMORY**self.updates  # the mean began at zero
        self._of_gradient = _SMOOTHING * self._of_gradient + (1 - _SMOOTHING) * square
        self._of_mean = _SMOOTHING * self._of_mean + (1 - _SMOOTHING) * K.sum_squares(self.mean) / started**2

    def scale(self, batch: float) -> float | None:
        """The noise scale in samples, for updates from so many; None before there is an estimate."""
        if self.updates < 5:
            return None
        # E|g|^2 = |G|^2 + V and E|mean|^2 = |G|^2 + c V, V the variance of the batch's gradient
        c = (1 - _MEMORY) / (1 + _MEMORY)
        variance = max(0.0, (self._of_gradient - self._of_mean) / (1 - c))
        signal = self._of_gradient - variance
        return batch * variance / signal if signal > 1e-3 * variance else 1e3 * batch

    def state_dict(self) -> dict[str, Any]:
        """The numbers; ``mean`` is the rest."""
        return {"updates": self.updates, "gradient": self._of_gradient, "mean": self._of_mean}

    def load_state_dict(self, state: dict[str, Any], mean: NDArray[np.float32]) -> None:
        """Restores ``state_dict()`` and ``mean``."""
        if mean.shape != self.mean.shape:
            raise ValueError(f"GradientNoise: mean has shape {mean.shape}, expected {self.mean.shape}")
        self.mean[...] = mean
        self.updates = int(state["updates"])
        self._of_gradient, self._of_mean = float(state["gradient"]), float(state["mean"])
