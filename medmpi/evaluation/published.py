"""What the five seed documents print, and where their figures contradict each other (MISSION.md, rows S0 to S4).

Nothing is measured here: tables are typed in as printed, and every contradiction is arithmetic over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Cells = list[list[str]]


@dataclass(frozen=True)
class Published:
    """A document's table as printed, and what cannot be true of it."""

    title: str
    head: list[str]
    rows: Cells
    findings: list[str]


@dataclass(frozen=True)
class Scores:
    """A row of S2's table II: per cent, macro averages over CIFAR-10's balanced test split, and seconds."""

    model: str
    parallel: bool
    epochs: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    seconds: float


S2_TABLE = (
    Scores("ResNet-18", False, 349, 85.98, 85.92, 85.98, 85.95, 12957.48),
    Scores("ResNet-18", True, 349, 86.21, 86.22, 86.21, 86.22, 9624.68),
    Scores("ResNet-18", False, 159, 85.45, 85.48, 85.45, 85.46, 5992.87),
    Scores("ResNet-18", True, 159, 85.98, 86.00, 85.98, 85.99, 4266.93),
    Scores("AlexNet", False, 25, 86.02, 85.045, 85.76, 84.13, 3994.93),
    Scores("AlexNet", True, 25, 87.43, 88.115, 87.82, 86.98, 2859.31),
    Scores("ResNet-50", False, 20, 72.78, 71.07, 70.84, 71.97, 1091.33),
    Scores("ResNet-50", True, 20, 74.89, 73.28, 73.01, 72.79, 8571.21),
)
_ROUNDING = 0.01  # of figures with two digits


def impossible(row: Scores) -> list[str]:
    """Why a row of macro averages over balanced classes cannot be; empty where it can."""
    name = f"{row.model}, {row.epochs} epochs, {'with' if row.parallel else 'without'} HPC"
    found = []
    if row.f1 > (row.precision + row.recall) / 2 + _ROUNDING:
        found.append(
            f"{name}: F1 {row.f1:g} is above the mean of precision and recall, {(row.precision + row.recall) / 2:g}"
        )
    if abs(row.recall - row.accuracy) > _ROUNDING:
        found.append(f"{name}: recall {row.recall:g} is not accuracy {row.accuracy:g}, on classes of equal size")
    return found


def _s2() -> Published:
    rows = [
        [f"{r.model}, {r.epochs} epochs, {'HPC' if r.parallel else 'no HPC'}",
         *(f"{v:g}" for v in (r.accuracy, r.precision, r.recall, r.f1, r.seconds))]
        for r in S2_TABLE
    ]  # fmt: skip
    findings = [line for row in S2_TABLE for line in impossible(row)]
    for alone, together in zip(S2_TABLE[::2], S2_TABLE[1::2], strict=True):
        if together.seconds > alone.seconds:
            ratio = together.seconds / alone.seconds
            findings.append(f"{alone.model}: {ratio:.2f} times as long with HPC; the text says that all were quicker")
    head = ["S2, table II", "accuracy", "precision", "recall", "F1", "seconds"]
    return Published("CIFAR-10 with and without HPC", head, rows, findings)


def least_mean(parts: Sequence[tuple[int, float]]) -> float:
    """The smallest mean of values of which so many are at least so large."""
    return sum(n * least for n, least in parts) / sum(n for n, _ in parts)


def _s0() -> Published:
    rows = [
        ["accuracy, %", "95", "92.7", "85.6", "99", "68 / 32"],
        ["loss", "0.3", "0.31", "0.21", "0.48", "45 / 55"],
        ["segmentation, ms", "40", "28.5", "10.5", "49.2", "27 / 73"],
        ["utilisation, %", "85", "82.3", "61.2", "99.1", "42 / 58"],
    ]
    bound = least_mean([(68, 95.0), (32, 85.6)])
    findings = [
        f"accuracy: 68 epochs of 95 % or more and 32 of 85.6 % or more have a mean of {bound:.2f} at least; 92.7 needs "
        "almost every epoch at its lower bound"
    ]
    findings.append("no dataset, hardware, network or batch size is named: only the shape of the figures can be met")
    head = ["S0, figures 2 to 5", "threshold", "mean", "smallest", "largest", "above / below"]
    return Published("Four series over 100 epochs", head, rows, findings)


def _s1() -> Published:
    train, validation = (98.27, 95.61), (38.32, 37.04)
    names = ("feature extraction", "fine-tuning")
    rows = [[n, f"{a:g}", f"{b:g}", "(blank)"] for n, a, b in zip(names, train, validation, strict=True)]
    findings = [
        f"{n}: validation {a - b:.2f} points below training: overfitting, of which the text says nothing"
        for n, a, b in zip(names, train, validation, strict=True)
    ]
    findings.append("test accuracy and the sequential time are blank: the speed-up has no base")
    return Published("CBIS-DDSM", ["S1, accuracy, %", "training", "validation", "test"], rows, findings)


S3_ACCURACY = {
    "sequential": (0.5215, 0.6588, 0.7058, 0.7371, 0.7671, 0.7856, 0.8018, 0.8156),
    "PyTorch at epochs 4, 6, 7, 8": (0.7407, 0.7932, 0.8132, 0.8298),
}
S3_SECONDS = (1509, 1481, 1468, 1473, 1485, 1467, 1475, 1466)


def _s3() -> Published:
    accuracy = S3_ACCURACY["sequential"]
    rows = [[str(e + 1), f"{a:.4f}", str(s)] for e, (a, s) in enumerate(zip(accuracy, S3_SECONDS, strict=True))]
    other = S3_ACCURACY["PyTorch at epochs 4, 6, 7, 8"]
    above = [e for e, value in zip((4, 6, 7, 8), other, strict=True) if value > accuracy[e - 1]]
    epochs = ", ".join(map(str, above))
    findings = [
        f"the text calls sequential training the most accurate; PyTorch is above it at epochs {epochs}",
        "all accuracies are of training; the models, devices, numbers of images and batch sizes differ",
    ]  # fmt: skip
    return Published("MiniXception, sequential", ["S3, table 1: epoch", "accuracy", "seconds"], rows, findings)


def _s4() -> Published:
    serial, parallel = (133034, 162176), (34, 41)
    printed = (3788, 3947)
    names = ("without colour normalisation", "with colour normalisation")
    rows = [[n, str(s), str(p), str(x)] for n, s, p, x in zip(names, serial, parallel, printed, strict=True)]
    findings = [
        f"{n}: {s} h in {p} h is {s / p:.0f} times as fast, {x} is printed"
        for n, s, p, x in zip(names, serial, parallel, printed, strict=True)
        if abs(s / p - x) > 0.02 * x
    ]
    groups = -(-22199 // 400)
    findings.append(f"ceiling(22199 / 4001) is printed for the groups of a slide; {groups} are those of 400 patches")
    findings.append("serial hours add up processor time of tasks of 7 threads: they say how well tasks were packed")
    return Published("Whole slides", ["S4, table II", "serial, h", "parallel, h", "speed-up"], rows, findings)


SEEDS: dict[str, Callable[[], Published]] = {"s0": _s0, "s1": _s1, "s2": _s2, "s3": _s3, "s4": _s4}
