"""The four series that S0 watches per epoch, each with its threshold: accuracy, loss, time per image, utilisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Columns = Mapping[str, Sequence[float]]
Beside = tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Threshold:
    """What a series is held against. ``above``: whether values at or above the limit are the good ones."""

    title: str
    unit: str
    limit: float
    above: bool

    def good(self, value: float) -> bool:
        """Whether a value is on the good side; the limit itself is."""
        return value >= self.limit if self.above else value <= self.limit


@dataclass(frozen=True)
class Watched:
    """A series with its threshold; epochs without a value are left out."""

    threshold: Threshold
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    beside: Beside = ()
    """Other series of the same unit for the same epochs, without a threshold of their own."""

    @property
    def good(self) -> tuple[bool, ...]:
        """For each value, whether it is on the good side."""
        return tuple(self.threshold.good(value) for value in self.values)

    def summary(self) -> dict[str, float]:
        """Mean, smallest, largest value, and how many lie at or above and below the limit; counts add up to all."""
        above = sum(value > self.threshold.limit for value in self.values)
        equal = sum(value == self.threshold.limit for value in self.values)
        above += equal if self.threshold.above else 0
        return {
            "mean": sum(self.values) / len(self.values),
            "min": min(self.values),
            "max": max(self.values),
            "above": above,
            "below": len(self.values) - above,
        }


def watch(epochs: Sequence[int], columns: Columns, *, segmentation: bool = False) -> list[Watched]:
    """The four series of a run, from its metrics; a series without any value is left out.

    Accuracy and loss are of validation where there is one, else of training. Utilisation is of the GPU where one is in
    use, else of the cores.
    """

    def first(*names: str) -> tuple[str, Sequence[float]]:
        for name in names:
            if name in columns and any(math.isfinite(value) for value in columns[name]):
                return name, columns[name]
        return names[-1], ()

    accuracy_name, accuracy = first("val_accuracy", "train_accuracy")
    loss_name, loss = first("val_loss", "train_loss")
    use_name, use = first("cpu_percent")
    gpu = [value for value in columns.get("gpu_percent", ()) if math.isfinite(value)]
    if gpu and max(gpu) >= 5:  # else the GPU is there but has no part in it
        use_name, use = "gpu_percent", columns["gpu_percent"]
    what = "segmentation" if segmentation else "inference"
    series = [
        (Threshold(f"{_of(accuracy_name)} accuracy", "%", 95, True), [100 * value for value in accuracy]),
        (Threshold(f"{_of(loss_name)} loss", "", 0.3, False), loss),
        (Threshold(f"{what} time per image", "ms", 40, False), first("infer_ms")[1]),
        (Threshold(f"{use_name[:3].upper()} utilisation", "%", 85, False), use),
    ]
    found = []
    for threshold, values in series:
        kept = [(e, float(v)) for e, v in zip(epochs, values, strict=False) if math.isfinite(v)]
        if kept:
            found.append(Watched(threshold, tuple(e for e, _ in kept), tuple(v for _, v in kept)))
    if found and found[-1].threshold.title.endswith("utilisation"):
        last = found.pop()
        found.append(replace(last, beside=_others(last.epochs, epochs, columns, use_name)))
    return found


def _others(kept: Sequence[int], epochs: Sequence[int], columns: Columns, shown: str) -> Beside:
    """Memory, and the cores where the GPU is the main series."""
    names = {"cpu_percent": "CPU", "memory_percent": "memory", "gpu_memory_percent": "GPU memory"}
    found = []
    for name, title in names.items():
        if name != shown and any(math.isfinite(value) for value in columns.get(name, ())):
            by_epoch = dict(zip(epochs, columns[name], strict=False))
            found.append((title, tuple(float(by_epoch[epoch]) for epoch in kept)))
    return tuple(found)


def _of(name: str) -> str:
    return "validation" if name.startswith("val") else "training"
