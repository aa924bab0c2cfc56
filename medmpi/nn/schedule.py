"""Learning rates over steps. A schedule gives the rate of step t (0, 1, ...); a step is whatever its user counts.

Schedules compose: ``warmup(cosine(0.1, 1000), 50)``. All are functions of t alone but ``Plateau``, which
watches a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, inf, isfinite, pi
from typing import Any, Literal


class Schedule:
    """A learning rate for every step."""

    def __init__(self, rate: Callable[[int], float], description: str) -> None:
        self._rate, self._description = rate, description

    def __call__(self, step: int) -> float:
        """The rate of step ``step``, which counts from 0."""
        if step < 0:
            raise ValueError(f"{self._description}: step is {step}, expected 0 or more")
        return self._rate(step)

    def observe(self, metric: float) -> None:
        """Tells the schedule the metric it may depend on, once per epoch; only ``Plateau`` and what wraps it listen."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``."""
        if state:
            raise ValueError(f"{self._description}: state has {sorted(state)}, expected nothing")

    def __repr__(self) -> str:
        return self._description


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name}: {key} is {value}, expected a finite number above 0")


def constant(rate: float) -> Schedule:
    """The same rate always."""
    _positive("constant", rate=rate)
    return Schedule(lambda t: rate, f"constant({rate:g})")


def milestones(rate: float, steps: Sequence[int], factor: float = 0.1) -> Schedule:
    """``rate`` times ``factor`` for each of ``steps`` that is reached (torch's MultiStepLR)."""
    _positive("milestones", rate=rate, factor=factor)
    marks = tuple(steps)
    if list(marks) != sorted(marks):
        raise ValueError(f"milestones: steps are {list(marks)}, expected rising")
    return Schedule(
        lambda t: rate * factor ** sum(t >= mark for mark in marks), f"milestones({rate:g}, {list(marks)}, {factor:g})"
    )


def cosine(rate: float, steps: int, floor: float = 0.0) -> Schedule:
    """Half a cosine from ``rate`` at step 0 down to ``floor`` at ``steps`` and after (torch's CosineAnnealingLR)."""
    _positive("cosine", rate=rate, steps=steps)
    return Schedule(
        lambda t: floor + (rate - floor) * (1 + cos(pi * min(t, steps) / steps)) / 2, f"cosine({rate:g}, {steps})"
    )


def inverse_time(rate: float, decay: float) -> Schedule:
    """``rate / (1 + decay t)``: S0 eq. 9 with the initial rate for its old one, the usual inverse-time decay."""
    _positive("inverse_time", rate=rate)
    _not_negative("inverse_time", decay)
    return Schedule(lambda t: rate / (1 + decay * t), f"inverse_time({rate:g}, {decay:g})")


def inverse_time_compound(rate: float, decay: float) -> Schedule:
    """``rate`` divided by ``1 + decay i`` for each step i up to t: S0 eq. 9 to the letter, each step from the last.

    It falls faster than exponentially: after 100 steps with decay 0.01 the rate is some 1e-17 of the first.
    """
    _positive("inverse_time_compound", rate=rate)
    _not_negative("inverse_time_compound", decay)
    products = [1.0]

    def at(t: int) -> float:
        while len(products) <= t:
            products.append(products[-1] / (1 + decay * len(products)))
        return rate * products[t]

    return Schedule(at, f"inverse_time_compound({rate:g}, {decay:g})")


def _not_negative(name: str, decay: float) -> None:
    if not (isfinite(decay) and decay >= 0):
        raise ValueError(f"{name}: decay is {decay}, expected a finite number >= 0")


class _Warmup(Schedule):
    def __init__(self, after: Schedule, steps: int, start: float) -> None:
        self._after = after
        super().__init__(self._at, f"warmup({after!r}, {steps})")
        self._steps, self._start = steps, start

    def _at(self, t: int) -> float:
        if t >= self._steps:
            return self._after(t - self._steps)
        return self._after(0) * (self._start + (1 - self._start) * t / self._steps)

    def observe(self, metric: float) -> None:
        self._after.observe(metric)

    def state_dict(self) -> dict[str, Any]:
        return self._after.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._after.load_state_dict(state)


def warmup(after: Schedule, steps: int, start: float = 0.1) -> Schedule:
    """From ``start`` times the first rate of ``after`` linearly to it in ``steps`` steps; then ``after`` itself.

    torch: ``SequentialLR([LinearLR(start, 1, steps), after], [steps])``.
    """
    if steps < 0 or not 0 <= start <= 1:
        raise ValueError(f"warmup: steps is {steps} and start {start}, expected steps >= 0 and 0 <= start <= 1")
    return _Warmup(after, steps, start) if steps else after


class Plateau(Schedule):
    """The rate times ``factor`` when a metric has not improved for more than ``patience`` observations.

    As torch's ReduceLROnPlateau: improvement is by more than a relative ``threshold``, ``cooldown`` observations
    after a reduction do not count, and the rate stays above ``floor``. A metric that is not a number is no improvement.
    """

    def __init__(
        self,
        rate: float,
        *,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        floor: float = 0.0,
    ) -> None:
        super().__init__(lambda t: self.rate, f"Plateau({rate:g}, mode={mode}, factor={factor:g}, patience={patience})")
        _positive("Plateau", rate=rate)
        if mode not in ("min", "max") or not 0 < factor < 1:
            raise ValueError(
                f"Plateau: mode is {mode!r} and factor {factor}, expected 'min' or 'max' and 0 < factor < 1"
            )
        self.rate, self.mode, self.factor, self.patience = rate, mode, factor, patience
        self.threshold, self.cooldown, self.floor = threshold, cooldown, floor
        self.best = inf if mode == "min" else -inf
        self.bad = self.cooling = 0

    def _better(self, metric: float) -> bool:
        if self.mode == "min":
            return metric < self.best * (1 - self.threshold)
        return metric > self.best * (1 + self.threshold)

    def observe(self, metric: float) -> None:
        """Counts the metric of one epoch."""
        if self._better(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self.patience:
            reduced = max(self.rate * self.factor, self.floor)
            if self.rate - reduced > 1e-8:  # torch's eps: smaller changes are ignored
                self.rate = reduced
            self.cooling, self.bad = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate, "best": self.best, "bad": self.bad, "cooling": self.cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        want = self.state_dict()
        if state.keys() != want.keys():
            raise ValueError(f"Plateau: state has {sorted(state)}, expected {sorted(want)}")
        self.rate, self.best = float(state["rate"]), float(state["best"])
        self.bad, self.cooling = int(state["bad"]), int(state["cooling"])
