"""Checkpoints that a kill at any moment leaves usable: every step's weights and state are one pair of files.

``checkpoints/step-N.safetensors`` holds the weights (torch's names and layout), ``step-N.state.safetensors`` all else
that training needs. Each is written under a temporary name, synced and renamed, the state last: a pair is complete or
it does not exist. ``last.safetensors`` and ``best.safetensors`` are hard links to the weights of one pair, replaced in
one step. The two newest pairs are kept.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medmpi.files import replacing
from medmpi.nn import checkpoint as files
from medmpi.train.failure import ERROR, Failure

Arrays = Mapping[str, NDArray[Any]]
_STATE = re.compile(r"step-(\d+)\.state\.safetensors$")
KEPT = 2


@dataclass
class Restored:
    """A good pair: weights and state with their metadata, and what was wrong with newer ones."""

    step: int
    weights: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]
    metadata: dict[str, str]
    rejected: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints folder of one run. Rank 0 alone writes; every call that writes may raise Failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recent: list[int] = []

    def weights_path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def state_path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.state.safetensors"

    def save(self, step: int, weights: Arrays, state: Arrays, metadata: Mapping[str, str]) -> int:
        """Writes the pair of a step, points last.safetensors to it and drops old pairs. Returns the bytes written.

        Failure with path, needed and free bytes where that cannot be done; the older checkpoints are untouched then.
        """
        total = 0
        for path, arrays in ((self.weights_path(step), weights), (self.state_path(step), state)):
            size = sum(array.nbytes for array in arrays.values())
            try:
                files.save(path, arrays, metadata)
            except files.CheckpointError as error:
                raise Failure(_no_room(path, size, error.__cause__ or error), ERROR) from error
            total += size
        self._point("last", step)
        self._recent = [*(s for s in self._recent if s != step), step][-KEPT:]
        self._prune()
        return total

    def mark_best(self, step: int) -> None:
        """best.safetensors becomes the weights of a step that has just been saved or restored."""
        self._point("best", step)

    def restore(self) -> Restored | None:
        """The newest pair that reads back whole, or None if there is none at all.

        Failure if there are pairs but none is good: going on from nothing would silently lose the run.
        """
        steps = sorted((int(m[1]) for p in self.folder.glob("step-*") if (m := _STATE.search(p.name))), reverse=True)
        rejected: list[str] = []
        for step in steps:
            try:
                weights, metadata = files.load(self.weights_path(step))
                state, state_metadata = files.load(self.state_path(step))
                if metadata.get("step") != str(step) or state_metadata.get("step") != str(step):
                    raise ValueError(f"holds step {metadata.get('step')}, expected {step}")
            except (files.CheckpointError, ValueError) as error:
                rejected.append(f"{self.weights_path(step).name}: {error}")
                continue
            self._recent = [step]
            return Restored(step, weights, state, state_metadata, rejected)
        if rejected:
            raise Failure(f"no good checkpoint in {self.folder}: {'; '.join(rejected)}")
        return None

    def best(self) -> tuple[dict[str, NDArray[Any]], dict[str, str]] | None:
        """Weights and metadata of best.safetensors; None if it is not there."""
        path = self.folder / "best.safetensors"
        if not path.exists():
            return None
        try:
            return files.load(path)
        except files.CheckpointError as error:
            raise Failure(str(error)) from None

    def _point(self, name: str, step: int) -> None:
        """name.safetensors = the weights of a step: a hard link, or a copy where the file system has none."""
        target, source = self.folder / f"{name}.safetensors", self.weights_path(step)
        try:
            # Where both are links to one file already, renaming does nothing and the temporary name is removed.
            with replacing(target) as temporary:
                temporary.unlink(missing_ok=True)
                try:
                    os.link(source, temporary)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                        raise
                    shutil.copyfile(source, temporary)
        except OSError as error:
            raise Failure(_no_room(target, source.stat().st_size, error)) from error

    def _prune(self) -> None:
        kept = {path for s in self._recent for path in (self.weights_path(s), self.state_path(s))}
        for path in sorted(self.folder.glob("step-*"), key=lambda p: ".state." not in p.name):  # state first
            if path not in kept:
                path.unlink(missing_ok=True)


def _no_room(path: Path, size: int, error: BaseException) -> str:
    try:
        free = f", {shutil.disk_usage(path.parent).free:,} bytes free"
    except OSError:
        free = ""
    return f"cannot save {path} ({size:,} bytes needed{free}): {getattr(error, 'strerror', None) or error}"
