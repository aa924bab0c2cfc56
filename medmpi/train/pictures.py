"""The report's pictures, drawn by matplotlib without pyplot (no global state, no display). Each returns HTML.

Line art becomes SVG text inside the page, pixels become an embedded PNG; the page needs no other file.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Series = Mapping[str, Sequence[float]]
TRAIN, VALIDATION, GREY = "#2b6cb0", "#dd6b20", "#718096"
_TIMES = (("t_comp", "compute", "#2f855a"), ("t_comm", "communication", "#2b6cb0"),
          ("t_wait", "wait for ranks", "#d69e2e"), ("t_io", "wait for data", "#c53030"))  # fmt: skip


def curves(epochs: Sequence[int], columns: Series) -> str:
    """Loss, accuracy, validation scores, learning rate, images per second and shares of time, over epochs."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    losses = [("train", columns["train_loss"], TRAIN), ("validation", columns["val_loss"], VALIDATION)]
    _lines(axes[0], "loss", epochs, losses)
    seen = np.array([*columns["train_loss"], *columns["val_loss"]], np.float64)
    seen = seen[np.isfinite(seen)]
    if seen.size and seen.min() > 0 and seen.max() > 30 * np.median(seen):
        axes[0].set_yscale("log")  # one wild early epoch would flatten the rest
    both = [("train", columns["train_accuracy"], TRAIN), ("validation", columns["val_accuracy"], VALIDATION)]
    _lines(axes[1], "accuracy", epochs, both)
    colours = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5")
    ranked = np.isfinite(columns["val_auc"]).any()  # masks have no such curve, but an intersection over union
    names = {"precision": "precision", "recall": "recall", "f1": "f1" if ranked else "Dice (f1)"}
    names |= {"auc": "auc"} if ranked else {"iou": "IoU"}
    scores = [(text, columns[f"val_{n}"], c) for (n, text), c in zip(names.items(), colours, strict=True)]
    _lines(axes[2], "validation scores, mean over classes", epochs, scores)
    _lines(axes[3], "learning rate", epochs, [("", columns["lr"], GREY)])
    _lines(axes[4], "images per second", epochs, [("", columns["images_per_s"], GREY)])
    axes[4].set_ylim(bottom=0)
    _time_shares(axes[5], epochs, columns)
    return svg(figure, "curves over epochs")


def confusion(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> str:
    """Rows are true classes, columns predictions; colour is the share of the row, numbers are counts."""
    k = len(classes)
    size = min(11.0, 3.2 + 0.55 * k)
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    names = [short(name) for name in classes]
    axis.set_xticks(range(k), names, rotation=45 if k > 3 else 0, ha="right" if k > 3 else "center")
    axis.set_yticks(range(k), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title)
    if k <= 20:
        for i in range(k):
            for j in range(k):
                colour = "white" if share[i, j] > 0.55 else "#1a202c"
                axis.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", color=colour, fontsize=8)
    return svg(figure, title)


def distribution(counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], unit: str = "samples") -> str:
    """Samples (or pixels) of each class in each split, beside each other; on a log scale where classes differ much."""
    k = len(classes)
    figure = Figure(figsize=(min(11.0, 3.5 + 0.6 * k), 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / max(len(counts), 1)
    colours = {"train": TRAIN, "val": VALIDATION, "test": "#2f855a"}
    for i, (split, values) in enumerate(counts.items()):
        where = np.arange(k) + (i - (len(counts) - 1) / 2) * width
        bars = axis.bar(where, values, width, label=split, color=colours.get(split, GREY))
        if k <= 10:
            axis.bar_label(bars, [f"{v:,}" for v in values], fontsize=7, padding=1)
    axis.set_xticks(range(k), [short(name) for name in classes], rotation=30 if k > 4 else 0)
    axis.set_ylabel(unit)
    seen = np.concatenate(list(counts.values()))
    if seen.max() > 30 * max(seen.min(), 1):
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(0.5, 0.3 * seen.min()))
    axis.legend(frameon=False, ncols=3, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    plain(axis)
    return svg(figure, "class distribution")


def samples(images: NDArray[np.uint8], titles: Sequence[str], masks: NDArray[np.uint8] | None = None) -> str:
    """A grid of pictures (n, h, w, 1 or 3 channels) with a title each; masks are drawn as a coloured layer."""
    n = len(images)
    columns = min(8, max(n, 1))
    rows = -(-n // columns)
    figure = Figure(figsize=(1.35 * columns, 1.6 * rows), layout="constrained", dpi=110)
    for axis in figure.subplots(rows, columns, squeeze=False).ravel():
        axis.axis("off")
    for i, (axis, title) in enumerate(zip(figure.axes, titles, strict=False)):
        image = images[i]
        axis.imshow(image[..., 0] if image.shape[-1] != 3 else image, cmap="gray", vmin=0, vmax=255)
        if masks is not None:
            axis.imshow(
                np.ma.masked_equal(masks[i], 0), cmap="autumn", alpha=0.45, vmin=0, vmax=max(int(masks.max()), 1)
            )
        axis.set_title(short(title), fontsize=8)
    return png(figure, "sample images")


@contextlib.contextmanager
def _any_letters() -> Iterator[None]:
    """Names of classes may have letters that the font has not: a box in a PNG; a page's SVG takes the reader's font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def png(figure: Figure, label: str) -> str:
    """The figure as pixels inside the page."""
    out = io.BytesIO()
    with _any_letters():
        figure.savefig(out, format="png")
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img alt="{label}" src="data:image/png;base64,{data}">'


def comparison(runs: Sequence[tuple[str, Sequence[float], Sequence[float]]], what: str) -> str:
    """Name, accuracy by epoch and seconds by epoch of each run: over epochs, seconds, and over the time spent."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    over_epochs, seconds, over_time = figure.subplots(1, 3)
    colours = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#718096")
    for i, (name, accuracy, times) in enumerate(runs):
        colour, epochs = colours[i % len(colours)], range(1, len(times) + 1)
        over_epochs.plot(epochs, accuracy, marker="o", markersize=3, color=colour, label=short(name))
        width = 0.8 / len(runs)
        where = [e + (i - (len(runs) - 1) / 2) * width for e in epochs]
        seconds.bar(where, times, width=width, color=colour, label=short(name))
        over_time.plot(np.cumsum(times), accuracy, marker="o", markersize=3, color=colour, label=short(name))
    for axis, title, below in (
        (over_epochs, f"{what} accuracy", "epoch"),
        (seconds, "seconds per epoch", "epoch"),
        (over_time, f"{what} accuracy over time", "seconds since the start"),
    ):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(below, fontsize=8)
        plain(axis)
    for axis in (over_epochs, seconds):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.legend(frameon=False, fontsize=8)
    return svg(figure, "comparison of runs")


def _lines(axis: Axes, title: str, epochs: Sequence[int], series: Sequence[tuple[str, Sequence[float], str]]) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    drawn = 0
    for name, values, colour in series:
        if np.isfinite(np.asarray(values, np.float64)).any():
            axis.plot(epochs, values, marker=marker, markersize=3, linewidth=1.6, color=colour, label=name or None)
            drawn += bool(name)
    axis.set_title(title, fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if drawn:
        axis.legend(frameon=False, fontsize=8)
    plain(axis)


def _time_shares(axis: Axes, epochs: Sequence[int], columns: Series) -> None:
    parts = np.nan_to_num(np.array([columns[name] for name, _, _ in _TIMES], np.float64))
    share = parts / np.maximum(parts.sum(0), 1e-12)
    bottom = np.zeros(len(epochs))
    for values, (_, label, colour) in zip(share, _TIMES, strict=True):
        axis.bar(epochs, values, width=0.9, bottom=bottom, color=colour, label=label)
        bottom += values
    axis.set_ylim(0, 1)
    axis.set_title("share of time (mean over ranks)", fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=True, framealpha=0.85, fontsize=7, loc="lower right")
    plain(axis, grid=False)


def plain(axis: Axes, grid: bool = True) -> None:
    """No frame at the top and right, small numbers, a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if grid:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)


def short(text: str, limit: int = 18) -> str:
    """A name for a picture: not too long, and its dollar signs are no formulas."""
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")


def svg(figure: Figure, label: str) -> str:
    """The figure as an element of a page; ``label`` tells it from the others."""
    out = io.StringIO()
    # A fixed salt and no date: the same run gives the same page.
    import matplotlib

    settings: dict[Any, Any] = {"svg.hashsalt": label, "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), _any_letters():
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Several pictures share one page, so their ids must not.
    prefix = re.sub(r"\W", "", label)[:24]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
