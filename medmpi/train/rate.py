"""The learning rate of every step, from the settings' epochs to the schedules' steps."""

from __future__ import annotations

from typing import Any

from medmpi.nn import schedule
from medmpi.train.options import Options


class Rate:
    """Linear warm-up, then the schedule: a function of the place within the run (and of what 'plateau' observed)."""

    def __init__(self, options: Options, base: float, steps_per_epoch: int, start: float = 0.0) -> None:
        self._steps = n = steps_per_epoch
        warm = min(1.0, options.epochs / 5) if options.warmup_epochs is None else options.warmup_epochs
        self._warm = round(warm * n)
        # Milestones are epochs of the run; the cosine begins where the warm-up ends.
        self._shift = self._warm if options.schedule == "cosine" else 0
        self._by_epoch = options.schedule.startswith("inverse_time")
        after: schedule.Schedule
        match options.schedule:
            case "constant" | "noise":
                after = schedule.constant(base)
            case "step":
                after = schedule.milestones(base, [m * n for m in options.milestones], options.gamma)
            case "cosine":
                after = schedule.cosine(base, max(1, options.epochs * n - self._warm))
            case "plateau":
                after = schedule.Plateau(base, factor=options.gamma, patience=options.patience)
            case "inverse_time":
                after = schedule.inverse_time(base, options.decay)
            case _:
                after = schedule.inverse_time_compound(base, options.decay)
        self._base, self._after, self._start = base, after, start

    def __call__(self, epoch: int, step_in_epoch: int) -> float:
        """The rate of a step (both count from 0). Warm-up leads from ``start`` to the full rate."""
        step = epoch * self._steps + step_in_epoch
        if step < self._warm:
            return self._start + (self._base - self._start) * (step + 1) / (self._warm + 1)
        if self._by_epoch:
            return self._after(step // self._steps)
        return self._after(step - self._shift)

    def warm(self, epoch: int, step_in_epoch: int) -> bool:
        """Whether warm-up is over."""
        return epoch * self._steps + step_in_epoch >= self._warm

    def observe(self, loss: float) -> None:
        """The validation loss of an epoch."""
        self._after.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        return self._after.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._after.load_state_dict(state)
