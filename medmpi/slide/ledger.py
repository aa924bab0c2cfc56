"""The books of a run folder: which items are done, failed, or open. Files that are whole or not there, and no locks.

``results/SLIDE/gNNNNN.safetensors`` is an item's scores (checksummed); ``failed/SLIDE/gNNNNN.json`` says why an item
failed, and beside it ``gNNNNN.partial.safetensors`` holds the scores of the patches that could be read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmpi.nn.checkpoint import CheckpointError
from medmpi.slide.files import read_json, write_json
from medmpi.slide.manifest import Item, Manifest
from medmpi.slide.predict import GroupScores, load_scores, save_scores


@dataclass
class Status:
    """The items of a run by what became of them, and the slides that are no part of it."""

    done: list[Item] = field(default_factory=list)
    failed: list[Item] = field(default_factory=list)
    open: list[Item] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.failed and not self.open

    def line(self) -> str:
        """One line of counts."""
        total = len(self.done) + len(self.failed) + len(self.open)
        return (
            f"{total} items: {len(self.done)} done, {len(self.failed)} failed, {len(self.open)} open;"
            f" {len(self.skipped)} slides skipped"
        )


class Ledger:
    """The results and failures of one run folder."""

    def __init__(self, run: Path, manifest: Manifest) -> None:
        self.run, self.manifest = run, manifest
        self._digest = manifest.digest

    def result_path(self, item: Item) -> Path:
        return self.run / "results" / item.slide.name / f"g{item.group:05d}.safetensors"

    def failure_path(self, item: Item) -> Path:
        return self.run / "failed" / item.slide.name / f"g{item.group:05d}.json"

    def partial_path(self, item: Item) -> Path:
        return self.failure_path(item).with_suffix(".partial.safetensors")

    def _metadata(self, item: Item) -> dict[str, str]:
        return {"medmpi.item": item.key, "medmpi.job": self._digest}

    def load(self, item: Item, *, partial: bool = False) -> GroupScores | None:
        """An item's scores, None where they are missing, damaged or of another job. With ``partial`` also what a failed
        item has."""
        for path in (self.result_path(item), *([self.partial_path(item)] if partial else [])):
            try:
                scores, metadata = load_scores(path)
            except CheckpointError:
                continue
            if {name: metadata.get(name) for name in self._metadata(item)} == self._metadata(item):
                return scores
        return None

    def done(self, item: Item) -> bool:
        """Whether an item's result is there and whole; a file that is there is not believed."""
        return self.result_path(item).exists() and self.load(item) is not None

    def finish(self, item: Item, scores: GroupScores) -> None:
        """Writes an item's result and drops what was noted of earlier failures."""
        path = self.result_path(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp*"):  # of a killed process; we hold the claim
            left.unlink(missing_ok=True)
        save_scores(path, scores, self._metadata(item))
        self.failure_path(item).unlink(missing_ok=True)
        self.partial_path(item).unlink(missing_ok=True)

    def fail(self, item: Item, why: str, scores: GroupScores | None = None) -> None:
        """Notes a failure, with the bad patches and the scores of the others."""
        path = self.failure_path(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        attempts = self.failure(item).get("attempts", 0) + 1
        bad = [] if scores is None else [[r, c, text] for r, c, text in scores.bad]
        if scores is not None:
            save_scores(self.partial_path(item), scores, self._metadata(item))
        write_json(
            path,
            {
                "item": item.key, "index": item.index, "error": why, "attempts": attempts, "bad_patches": bad,
                "host": os.uname().nodename, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )  # fmt: skip

    def failure(self, item: Item) -> dict[str, Any]:
        """What was noted of an item's failure; empty where nothing was."""
        path = self.failure_path(item)
        if not path.exists():
            return {}
        content: dict[str, Any] = read_json(path, "a failure's record")
        return content

    def status(self, items: Iterable[Item] | None = None, *, verify: bool = False) -> Status:
        """What became of the items. ``verify`` reads every result; else one that is there counts."""
        found = Status(skipped=dict(self.manifest.skipped))
        for item in self.manifest.items() if items is None else items:
            if self.done(item) if verify else self.result_path(item).exists():
                found.done.append(item)
            elif self.failure_path(item).exists():
                found.failed.append(item)
            else:
                found.open.append(item)
        return found

    def log(self, line: dict[str, Any]) -> None:
        """Appends to this process's own log: times are no part of results, which must not depend on them."""
        folder = self.run / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"items-{os.uname().nodename}-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
