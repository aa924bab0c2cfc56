"""What a whole-slide job will take, before it is submitted (S4's tables I to III).

A job is D slides of T_p patches each; a patch is (224 / stride)^2 windows; a group of N_p patches is one task of c
cores. Tasks go to C cores as they become free, so the time is that of list scheduling, not work divided by cores.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from medmpi.slide.grid import group_count

S4_SECONDS = 0.2255  # core-seconds of a window: 133,034 h over 10.84 million patches of 196 windows
S4_PREPARE = 354 / 399  # hours to extract the patches of a slide


@dataclass(frozen=True)
class Cost:
    """Hours on the clock and core-hours of both steps."""

    groups: int
    windows: int
    prepare_hours: float
    prepare_core_hours: float
    predict_hours: float
    predict_core_hours: float
    task_hours: float
    efficiency: float

    @property
    def hours(self) -> float:
        return self.prepare_hours + self.predict_hours

    @property
    def core_hours(self) -> float:
        return self.prepare_core_hours + self.predict_core_hours


def finish_time(tasks: Sequence[float], places: int) -> float:
    """When the last task ends if each takes the place that is free first."""
    if places < 1:
        raise ValueError(f"cost: {places} tasks fit at once, expected 1 or more")
    ends = [0.0] * min(places, max(len(tasks), 1))
    for seconds in tasks:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def estimate(
    patches: Sequence[int], *, cores: int, stride: int, group_size: int, window_seconds: float, patch: int = 224,
    cores_per_task: int = 1, start_seconds: float = 5.0, read_seconds: float = 0.0,
    prepare_seconds: Sequence[float] | float = 60.0,
) -> Cost:  # fmt: skip
    """``patches`` are those of each slide; ``window_seconds`` core-seconds a window, ``read_seconds`` a patch's reading
    that does not hide behind computing, ``start_seconds`` the start of a task. ValueError where no task fits."""
    if cores < cores_per_task or cores_per_task < 1:
        raise ValueError(f"cost: {cores} cores, expected at least the {cores_per_task} of a task")
    per_patch = max(1.0, patch / stride) ** 2
    tasks, groups = [], 0
    for count in patches:
        n = group_count(count, group_size)
        groups += n
        for g in range(n):
            size = min(group_size, count - g * group_size)
            tasks.append(size * (per_patch * window_seconds / cores_per_task + read_seconds) + start_seconds)
    longest_first = sorted(tasks, reverse=True)
    predict = finish_time(longest_first, cores // cores_per_task)
    slides = [prepare_seconds] * len(patches) if isinstance(prepare_seconds, int | float) else list(prepare_seconds)
    prepare = finish_time(sorted(slides, reverse=True), cores)
    work = sum(patches) * per_patch * window_seconds
    return Cost(
        groups, round(sum(patches) * per_patch), prepare / 3600, sum(slides) / 3600, predict / 3600,
        sum(tasks) * cores_per_task / 3600, max(tasks, default=0.0) / 3600,
        work / (predict * cores) if predict else 1.0,
    )  # fmt: skip
