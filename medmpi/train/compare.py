"""``medmpi compare``: runs beside each other, the first one the base; sequential against parallel (S3, tables 1 to 5).

S3's comparison set a CPU against a GPU with other models, other numbers of images and other batch sizes and called the
ratio a speed-up from parallelism. Here settings that differ between the runs are listed first.
"""

from __future__ import annotations

import html
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmpi.files import write_whole
from medmpi.train.log import read_metrics

MUST_MATCH = ("data", "task", "image_size", "model", "width", "stem", "batch_size", "augment", "optimizer", "lr",
              "schedule", "epochs", "seed", "sync_batchnorm", "precision", "init", "freeze")  # fmt: skip
"""Settings that decide what is trained: with another value a run does other work."""


class CompareError(Exception):
    """A folder that holds no run that can be compared; the message names it."""


@dataclass(frozen=True)
class Run:
    """What a run folder says: settings, its start, metrics by epoch, test scores."""

    name: str
    settings: dict[str, Any]
    ranks: int
    rows: list[dict[str, float]]
    test: dict[str, Any] | None

    def column(self, name: str) -> list[float]:
        """A column of metrics.csv; NaN where it has no value."""
        return [row.get(name, math.nan) for row in self.rows]

    @property
    def accuracy_name(self) -> str:
        """Validation accuracy where there is one: training accuracy alone proves nothing (S3-21)."""
        return "val_accuracy" if any(map(math.isfinite, self.column("val_accuracy"))) else "train_accuracy"


def read(folder: Path) -> Run:
    """The run in a folder; CompareError where there is none or it has no finished epoch."""
    if not (folder / "metrics.csv").is_file() or not (folder / "config.toml").is_file():
        raise CompareError(f"{folder} is no run folder: expected metrics.csv and config.toml in it")
    rows = [
        {key: float(value) if value else math.nan for key, value in row.items()}
        for row in read_metrics(folder / "metrics.csv")
    ]
    if not rows:
        raise CompareError(f"{folder}: metrics.csv has no finished epoch yet")
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        path = folder / "test.json"
        test = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, OSError) as error:
        raise CompareError(f"{folder}: {error}") from None
    settings = {key.replace("-", "_"): value for key, value in settings.items()}
    return Run(folder.name or str(folder), settings, last_start(folder)["ranks"], rows, test)


def last_start(folder: Path) -> dict[str, Any]:
    """What rank 0 wrote of the last start; runs that were resumed on other ranks count as the last.

    CompareError where that does not say on how many ranks it was.
    """
    path, found = folder / "log-rank0.jsonl", {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CompareError(f"{folder}: its number of ranks cannot be read from {path.name} ({error})") from None
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # a line that a kill cut short
            continue
        if isinstance(event, dict) and event.get("event") == "start":
            found = event
    if not isinstance(found.get("ranks"), int) or found["ranks"] < 1:
        raise CompareError(f"{folder}: {path.name} does not say on how many ranks it ran")
    return found


def differing(runs: Sequence[Run]) -> list[str]:
    """A line for each setting that must match and does not."""
    lines = []
    for name in MUST_MATCH:
        values = [str(run.settings.get(name, "default")) for run in runs]
        if len(set(values)) > 1:
            lines.append(f"--{name.replace('_', '-')} differs: {', '.join(values)}")
    return lines


Table = tuple[str, list[str], list[list[str]]]


def tables(runs: Sequence[Run]) -> list[Table]:
    """Title, head and rows: the summary, accuracy by epoch, seconds by epoch."""
    base = runs[0]
    names = [run.name for run in runs]
    epochs = range(min(len(run.rows) for run in runs))
    times = [_mean(run.column("time_s")[: len(epochs)]) for run in runs]
    rates = [_mean(run.column("images_per_s")[: len(epochs)]) for run in runs]
    speedups = [times[0] / t if t else math.nan for t in times]
    best = [max(filter(math.isfinite, run.column("val_accuracy")), default=math.nan) for run in runs]
    efficiency = [100 * s * base.ranks / run.ranks for s, run in zip(speedups, runs, strict=True)]
    summary = [
        ["ranks", *(str(run.ranks) for run in runs)],
        ["seconds per epoch", *(f"{t:.2f}" for t in times)],
        ["training images per second", *(f"{r:.1f}" for r in rates)],
        [f"speed-up over {base.name}", *(f"{s:.2f}x" for s in speedups)],
        ["efficiency per rank", *(f"{value:.0f} %" for value in efficiency)],
        ["share of communication and waiting", *(_share(run) for run in runs)],
        ["best validation accuracy", *map(_figure, best)],
        ["test accuracy", *(_figure((run.test or {}).get("accuracy")) for run in runs)],
        ["train accuracy, last epoch", *(_figure(run.column("train_accuracy")[-1]) for run in runs)],
    ]  # fmt: skip
    what = {"val_accuracy": "validation", "train_accuracy": "training"}[base.accuracy_name]
    accuracy = [[str(e + 1), *(_figure(run.column(base.accuracy_name)[e]) for run in runs)] for e in epochs]
    seconds = [
        [str(e + 1), *(f"{run.column('time_s')[e]:.2f}" for run in runs),
         *(f"{base.column('time_s')[e] / run.column('time_s')[e]:.2f}x" for run in runs[1:])]
        for e in epochs
    ]  # fmt: skip
    seconds.append(["mean", *(f"{t:.2f}" for t in times), *(f"{s:.2f}x" for s in speedups[1:])])
    return [
        ("Sequential against parallel", ["", *names], summary),
        (f"Accuracy ({what}) by epoch", ["epoch", *names], accuracy),
        ("Seconds by epoch, and speed-up", ["epoch", *names, *(f"{n} speed-up" for n in names[1:])], seconds),
    ]


def markdown(table: Table) -> str:
    """A table as text that is also Markdown."""
    title, head, rows = table
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [f"{title}", ""]
    for row in [head, ["---", *("---:" for _ in head[1:])], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(runs: Sequence[Run]) -> str:
    """The comparison as one HTML file."""
    from medmpi.train.pictures import comparison
    from medmpi.train.report import STYLE, table

    warned = differing(runs)
    body = ["<h1>" + " / ".join(html.escape(run.name) for run in runs) + "</h1>"]
    if warned:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in warned)
        body.append(f"<p class=bad>These runs did not do the same work:<ul>{lines}</ul></p>")
    series = [(run.name, run.column(runs[0].accuracy_name), run.column("time_s")) for run in runs]
    body.append(comparison(series, "validation" if runs[0].accuracy_name.startswith("val") else "training"))
    for title, head, rows in tables(runs):
        body.append(f"<h2>{html.escape(title)}</h2>{table(head, rows)}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>medmpi compare</title>'
        f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def compare(folders: Sequence[Path], to: Path | None) -> str:
    """The text for the terminal; also writes the page. CompareError for a folder that is no run."""
    runs = [read(folder) for folder in folders]
    parts = [f"WARNING: these runs did not do the same work: {line}" for line in differing(runs)]
    parts += [markdown(table) for table in tables(runs)]
    if to is not None:
        write_whole(to, page(runs))
    return "\n\n".join(parts)


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _share(run: Run) -> str:
    parts = {name: _mean(run.column(name)) for name in ("t_comp", "t_comm", "t_wait", "t_io")}
    whole = sum(value for value in parts.values() if math.isfinite(value))
    return f"{100 * (parts['t_comm'] + parts['t_wait']) / whole:.1f} %" if whole else "–"


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"
