"""The assessment's pictures: ROC and precision-recall curves, reliability, Grad-CAM and mask overlays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medmpi.evaluation import Calibration, OperatingPoint, precision_recall_curve, reliability, roc_curve, softmax
from medmpi.train.assess import Assessment
from medmpi.train.evaluate import ClassOutputs
from medmpi.train.explain import Explained
from medmpi.train.pictures import GREY, plain, png, short, svg

_COLOURS = (
    "#2b6cb0",
    "#dd6b20",
    "#2f855a",
    "#805ad5",
    "#c53030",
    "#718096",
    "#d53f8c",
    "#319795",
    "#975a16",
    "#4a5568",
)
Corner: TypeAlias = Literal["lower right", "lower left", "upper left"]
_CURVES = 10  # classes with a curve; more could not be told apart
_INSIDE = 4  # curves whose legend has room among them
_RESAMPLES = 200


def curves(classes: Sequence[str], outputs: ClassOutputs, found: Assessment) -> str:
    """ROC with a band (two classes: pointwise 95 %, bootstrap), precision-recall, operating points, reliability."""
    with_calibration = found.calibration is not None
    columns = [c for c, name in enumerate(classes) if name in found.auc][:_CURVES]
    many = len(columns) > _INSIDE  # their legends would hide the curves
    height = 3.9 + (0.19 * len(columns) if many else 0)
    figure = Figure(figsize=(11 if with_calibration else 7.6, height), layout="constrained")
    axes = figure.subplots(1, 3 if with_calibration else 2)
    labels, p = outputs.labels, softmax(outputs.logits)
    for i, c in enumerate(columns):
        colour, positive = _COLOURS[i % len(_COLOURS)], labels == c
        score = outputs.logits[:, 1] - outputs.logits[:, 0] if len(classes) == 2 else p[:, c]
        fpr, tpr, _ = roc_curve(positive, score)
        area = found.auc[classes[c]]
        name = f"{short(classes[c], 14)}: {area.value:.3f} ({area.low:.3f}–{area.high:.3f})"
        axes[0].plot(fpr, tpr, color=colour, linewidth=1.6, label=name)
        if len(columns) == 1:
            grid, low, high = _band(positive, score)
            axes[0].fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        precision, recall, _ = precision_recall_curve(positive, score)
        mean = found.average_precision[classes[c]]
        name = f"{short(classes[c], 14)}: {mean.value:.3f} ({mean.low:.3f}–{mean.high:.3f})"
        axes[1].step(recall, precision, where="pre", color=colour, linewidth=1.6, label=name)
        if len(columns) == 1:
            axes[1].axhline(positive.mean(), color=GREY, linestyle=":", linewidth=1, label="prevalence")
    axes[0].plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    _mark(axes[0], found.points)
    _square(axes[0], "ROC, area with 95 % interval", "1 - specificity", "sensitivity", "lower right")
    _square(axes[1], "precision-recall, average precision", "recall (sensitivity)", "precision (PPV)", "lower left")
    if many:
        for axis in axes[:2]:
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    if found.calibration is not None:
        _reliability(axes[2], outputs, found.calibration)
    return svg(figure, "curves of the test split")


def _band(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """Pointwise 95 % band of sensitivity over a grid of false positive rates, resampled within the classes."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 1, 101)
    groups = np.flatnonzero(positive), np.flatnonzero(~positive)
    drawn = []
    for _ in range(_RESAMPLES):
        i = np.concatenate([group[rng.integers(0, len(group), len(group))] for group in groups])
        fpr, tpr, _ = roc_curve(positive[i], score[i])
        last = np.searchsorted(fpr, grid, side="right") - 1
        drawn.append(tpr[last])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return grid, low, high


def _mark(axis: Axes, points: dict[str, OperatingPoint]) -> None:
    markers = ("x", "o", "s", "^", "v")
    for (name, point), marker in zip(points.items(), markers, strict=False):
        x, y = 1 - point.specificity.value, point.sensitivity.value
        axis.plot(
            [x], [y], marker=marker, markersize=6, markerfacecolor="none", color="#1a202c", linestyle="", label=name
        )


def _reliability(axis: Axes, outputs: ClassOutputs, c: Calibration) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for t, colour, name, error in (
        (1.0, "#c53030", "as trained", c.ece_before),
        (c.temperature, "#2f855a", f"temperature {c.temperature:.2f}", c.ece_after),
    ):
        mean, accuracy, counts = reliability(softmax(outputs.logits, t), outputs.labels, 10)
        kept = counts > 0
        size = 12 + 90 * counts[kept] / counts.sum()
        axis.plot(mean[kept], accuracy[kept], color=colour, linewidth=1.2)
        axis.scatter(mean[kept], accuracy[kept], s=size, color=colour, alpha=0.75, linewidths=0,
                     label=f"{name}: ECE {error:.3f}")  # fmt: skip
    _square(axis, "calibration, points by samples", "confidence", "accuracy", "upper left")


def _square(axis: Axes, title: str, x: str, y: str, where: Corner) -> None:
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.legend(fontsize=7, loc=where, framealpha=0.85, edgecolor="none")
    plain(axis)


def explained(found: Explained) -> str:
    """A picture per image; beside each Grad-CAM map the image without it, beside each mask overlay its legend."""
    n = len(found.images)
    if found.heat is not None:
        columns = min(4, n)
        rows = -(-n // columns)
        figure = Figure(figsize=(2.6 * columns, 1.75 * rows), layout="constrained", dpi=100)
        axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for i in range(n):
            for axis in axes[2 * i : 2 * i + 2]:
                _image(axis, found.images[i])
            axes[2 * i + 1].imshow(found.heat[i], cmap="inferno", alpha=0.5, vmin=0, vmax=1)
            axes[2 * i].set_title(found.titles[i], fontsize=8, loc="left")
        return png(figure, "Grad-CAM of test images")
    if found.truth is None or found.predicted is None:
        raise ValueError("explained: neither heat nor masks, expected one of them")
    columns = min(4, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(2.6 * columns, 2.85 * rows), layout="constrained", dpi=100)
    for i, axis in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axis.axis("off")
        if i < n:
            _image(axis, found.images[i])
            _outline(axis, found.truth[i], "#38a169", 1.4)
            _outline(axis, found.predicted[i], "#e53e3e", 0.9)
            axis.set_title(found.titles[i], fontsize=8)
    return png(figure, "masks of test images: truth green, prediction red")


def _outline(axis: Axes, mask: NDArray[np.uint8], colour: str, width: float) -> None:
    """The border of every class but the background; lines between classes of one mask are drawn once."""
    for k in np.unique(mask[mask > 0]):
        axis.contour(mask == k, levels=[0.5], colors=colour, linewidths=width)


def _image(axis: Axes, image: NDArray[np.uint8]) -> None:
    axis.imshow(image[..., 0] if image.shape[-1] != 3 else image, cmap="gray", vmin=0, vmax=255)
