"""The threshold figures of S0, drawn: green points on the good side of the dashed limit, red ones beyond it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medmpi.train.pictures import plain, svg
from medmpi.train.thresholds import Watched

GOOD, BAD, LINE = "#2f855a", "#c53030", "#a0aec0"


def draw(series: Sequence[Watched]) -> Figure:
    """A panel per series, two beside each other."""
    rows = -(-len(series) // 2)
    figure = Figure(figsize=(11, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis, watched in zip(axes, series, strict=False):
        _panel(axis, watched)
    for axis in axes[len(series) :]:
        axis.axis("off")
    return figure


def dashboard(series: Sequence[Watched]) -> str:
    """The figure as HTML."""
    return svg(draw(series), "thresholds per epoch")


def table(series: Sequence[Watched]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: mean, smallest and largest value, values above and below the limit."""
    rows = []
    for watched in series:
        unit = f" {watched.threshold.unit}" if watched.threshold.unit else ""
        found = watched.summary()
        figures = [f"{found[name]:.4g}{unit}" for name in ("mean", "min", "max")]
        limit = f"{watched.threshold.limit:g}{unit}"
        rows.append([watched.threshold.title, limit, *figures, f"{found['above']:.0f}", f"{found['below']:.0f}"])
        for name, values in watched.beside:
            figures = [f"{value:.4g}{unit}" for value in (sum(values) / len(values), min(values), max(values))]
            rows.append([f"{name} utilisation", "–", *figures, "–", "–"])
    return ["per epoch", "threshold", "mean", "min", "max", "epochs above", "epochs below"], rows


def _panel(axis: Axes, watched: Watched) -> None:
    t, good = watched.threshold, watched.good
    many = len(watched.values) > 60
    axis.plot(watched.epochs, watched.values, color=LINE, linewidth=1, zorder=1)
    for wanted, colour, word in ((True, GOOD, "within"), (False, BAD, "beyond")):
        points = [(e, v) for e, v, g in zip(watched.epochs, watched.values, good, strict=True) if g == wanted]
        if points:
            xs, ys = zip(*points, strict=True)
            axis.scatter(xs, ys, s=14 if many else 34, color=colour, zorder=2, label=f"{word}: {len(points)}")
    unit = f" {t.unit}" if t.unit else ""
    axis.axhline(t.limit, color="#1a202c", linestyle="--", linewidth=1, zorder=0, label=f"threshold {t.limit:g}{unit}")
    for (name, values), style in zip(watched.beside, (":", "-.", (0, (1, 3))), strict=False):
        axis.plot(watched.epochs, values, color="#4a5568", linestyle=style, linewidth=1.3, label=name)
    seen = [*watched.values, t.limit, *(value for _, values in watched.beside for value in values)]
    low, high = min(seen), max(seen)
    room = 0.08 * (high - low) or 1.0
    axis.set_ylim(low - room, high + 2.2 * room)  # the legend stands above the points
    found = watched.summary()
    axis.set_title(
        f"{t.title}: mean {found['mean']:.4g}{unit}, min {found['min']:.4g}, max {found['max']:.4g}", fontsize=10
    )
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel(f"{t.title}{f' [{t.unit}]' if t.unit else ''}", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="upper center")
    plain(axis)
