"""The results of a job: JSON lines as they come, one file for each rank; at the end a table and a summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from medmpi.files import write_whole

Result = dict[str, Any]
_PERCENTILES = (50, 90, 95, 99)


class ResultLog:
    """Appends one rank's results; a line cut short by a kill is left out when they are read."""

    def __init__(self, out: Path, rank: int) -> None:
        self.path = out / "results" / f"rank{rank}.jsonl"
        self._file: TextIO | None = None

    def add(self, result: Result) -> None:
        """Writes a result and hands it to the system, so that a kill of this process does not lose it."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")
        self._file.write(json.dumps(result, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_results(out: Path) -> dict[str, Result]:
    """All results by name, the newest of each."""
    found: dict[str, Result] = {}
    for path in sorted((out / "results").glob("rank*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                result = json.loads(line)
                known = found.get(result["name"])
            except (ValueError, KeyError, TypeError):
                continue
            if known is None or known.get("at", 0) <= result.get("at", 0):
                found[result["name"]] = result
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, the 50th, 90th, 95th and 99th percentile and the largest; empty for no values."""
    if not values:
        return {}
    array = np.asarray(values, np.float64)
    named = {f"p{p}": float(np.percentile(array, p)) for p in _PERCENTILES}
    return {k: round(v, 3) for k, v in ({"mean": float(array.mean())} | named | {"max": float(array.max())}).items()}


def latencies(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Percentiles in ms: of the network per frame, of each part and all of it per file, from arrival where known."""
    good = [r for r in results if "error" not in r]
    parts = {
        "network_per_frame": [v for r in good for v in r["ms"]["network"]],
        **{part: [r["ms"][part] for r in good] for part in ("read", "predict", "write", "total")},
        "from_arrival": [r["latency_ms"] for r in good if "latency_ms" in r],
    }
    return {name: percentiles(values) for name, values in parts.items() if values}


def write_table(out: Path, results: Sequence[Result], classes: Sequence[str], *, segments: bool) -> None:
    """results.csv: one line for each frame; an image that could not be used has its error."""
    columns = ["file", "frame"]
    columns += [f"pixels_{c}" for c in classes] + ["pixel_mm2", "masks"] if segments else ["class"]
    columns += [] if segments else [f"p_{c}" for c in classes]
    columns += ["network_ms", "error"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for result in sorted(results, key=lambda r: str(r["file"])):
        if "error" in result:
            writer.writerow([result["file"], "", *([""] * (len(columns) - 3)), result["error"]])
            continue
        for i, (frame, ms) in enumerate(zip(result["frames"], result["ms"]["network"], strict=True)):
            row = [result["file"], i]
            if segments:
                row += [*frame["pixels"], result.get("pixel_mm2", ""), " ".join(result.get("masks", []))]
            else:
                row += [frame["class"], *frame["p"]]
            writer.writerow([*row, ms, ""])
    write_whole(out / "results.csv", text.getvalue())


def write_summary(out: Path, values: dict[str, Any]) -> None:
    """summary.json."""
    write_whole(out / "summary.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
