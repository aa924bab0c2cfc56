"""The book of what is done: one JSON line for each unit, appended once its files are on disk.

Each rank, and each run of its own part (``--shard k/n``), has a file of its own; all files are read at the start.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from medmpi.files import write_whole
from medmpi.prepare.options import Options
from medmpi.train.failure import USAGE, Failure

SETTINGS = "prepare.json"


class Book:
    """A rank's records. ``stage`` tells the passes of a run apart."""

    def __init__(self, out: Path, options: Options, stage: str = "units", rank: int = 0) -> None:
        self.out, self.stage = out, stage
        part = "" if options.shard is None else f"-{options.shard[0]}-of-{options.shard[1]}"
        who = f"-rank{rank}" if rank else ""
        self.path = out / "progress" / f"{stage}{part}{who}.jsonl"
        self._file: TextIO | None = None

    def read(self) -> dict[str, dict[str, Any]]:
        """What any run has finished, by key; a line cut short by a kill is left out."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.path.parent.glob(f"{self.stage}*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    found[record["key"]] = record
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")  # the last line may have been cut short
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._file:
                os.fsync(self._file.fileno())
            self._file = None


def claim(out: Path, options: Options) -> None:
    """Makes the folder; Failure where it holds results of other settings, or something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-test.{os.getpid()}"
        probe.write_bytes(b"medmpi")
        probe.unlink()
    except OSError as error:
        raise Failure(f"cannot write to {out}: {error.strerror or error}") from None
    path = out / SETTINGS
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise Failure(f"{path} is damaged; give another --out, or delete it") from None
        mine = options.identity()
        others = sorted(k for k in mine if saved.get(k) != mine[k])
        if others:
            differ = ", ".join(f"{k} {saved.get(k)!r} not {mine[k]!r}" for k in others)
            raise Failure(f"{out} was prepared with other settings ({differ}); give another --out", USAGE)
    elif any(entry for entry in out.iterdir() if not entry.name.startswith(".")):
        raise Failure(f"{out} is not empty and holds nothing of medmpi prepare; give another --out", USAGE)
    else:
        write_whole(path, json.dumps(options.identity(), indent=1) + "\n")
