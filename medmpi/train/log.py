"""What a run writes down: metrics.csv, metrics.jsonl, TensorBoard events and one log-rank*.jsonl per rank."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from medmpi.files import write_whole

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall",
    "val_f1", "val_auc", "val_iou", "images_per_s", "time_s", "t_comp", "t_comm", "t_wait", "t_io", "r_alloc",
    "r_alloc_literal", "imbalance", "infer_ms", "cpu_percent", "memory_percent", "memory_mib", "gpu_percent",
    "gpu_memory_percent", "update_images", "noise_scale", "energy_j",
)  # fmt: skip
"""One row per epoch. Times are seconds of the slowest part of the epoch averaged over ranks (see trainer.py)."""


class MetricsLog:
    """The metrics of each epoch in three forms. Rank 0 owns it.

    A resumed run goes on with the same files: rows after the epoch it resumes from are cut off, whatever a stopped run
    may have written there, and there is one header for ever.
    """

    def __init__(self, folder: Path, *, finished_epochs: int, step: int) -> None:
        self.csv_path, self.jsonl_path = folder / "metrics.csv", folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.csv_path) if int(row["epoch"]) <= finished_epochs]
        write_whole(self.csv_path, _csv_text([[_cell(row.get(name)) for name in COLUMNS] for row in kept], header=True))
        lines = [line for line in _read_jsonl(self.jsonl_path) if line.get("epoch", 0) <= finished_epochs]
        write_whole(self.jsonl_path, "".join(_json_line(line) for line in lines))
        self._folder, self._first_step = folder / "tensorboard", step
        self._events: Any = None

    def row(self, values: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        """Appends one epoch; extra (per-class scores, confusion matrix) goes to the JSON lines alone."""
        _append(self.csv_path, _csv_text([[_cell(values.get(name)) for name in COLUMNS]]))
        _append(self.jsonl_path, _json_line({**values, **(extra or {})}))
        self._write_events(values)

    def _write_events(self, values: Mapping[str, Any]) -> None:
        if self._events is None:
            self._events = _summary_writer(self._folder, self._first_step)
        step = int(values["step"])
        for name in COLUMNS[2:]:
            value = values.get(name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                part, _, what = name.partition("_")
                tag = f"{what}/{part}" if part in ("train", "val") else f"run/{name}"
                self._events.add_scalar(tag, value, step)
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class RankLog:
    """One rank's events as JSON lines with the time: start, epochs, checkpoints, faults. Appends; line-buffered."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file: TextIO = (folder / f"log-rank{rank}.jsonl").open("a", encoding="utf-8", buffering=1)
        self._rank = rank

    def event(self, kind: str, **values: Any) -> None:
        self._file.write(_json_line({"time": round(time.time(), 3), "rank": self._rank, "event": kind, **values}))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RankLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _summary_writer(folder: Path, first_step: int) -> Any:
    """tensorboardX's writer, imported late (0.3 s) and without torch.

    Where torch is installed tensorboardX imports it, although scalars do not need it: seconds of start-up, and a second
    OpenMP runtime in this process.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=first_step or None)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(text)))
    return [row for row in rows if None not in row.values() and (row.get("epoch") or "").isdigit()]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # the line a kill cut short
            continue
    return found


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return str(value)


def _csv_text(rows: list[list[str]], *, header: bool = False) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()


def _json_line(values: Mapping[str, Any]) -> str:
    return json.dumps(finite(values), separators=(",", ":"), default=str) + "\n"


def finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
