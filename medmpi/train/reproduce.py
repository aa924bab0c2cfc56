"""A run trained once more from what its folder recorded, and held against it: curves, test scores, weights."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import __version__
from medmpi import kernels as K
from medmpi.nn import checkpoint
from medmpi.parallel.run import find_mpirun, launch
from medmpi.train.compare import CompareError, Run, Table, last_start, read

_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
_SCORES = ("loss", "accuracy", "f1")


@dataclass(frozen=True)
class Start:
    """How a run was last started, as its log says; what older versions did not write is empty."""

    ranks: int
    version: str
    kernels: str
    folder: Path


@dataclass(frozen=True)
class Verdict:
    """Whether the second run is the first again, why in one line, and the figures side by side."""

    same: bool
    text: str
    table: Table


def started(folder: Path) -> Start:
    """The last start in a run folder's log; CompareError where there is none."""
    event = last_start(folder)
    place = Path(event.get("folder") or os.getcwd())
    return Start(event["ranks"], str(event.get("version", "")), str(event.get("kernels", "")), place)


def train_again(folder: Path, start: Start, out: Path, ranks: int, more: Sequence[str]) -> int:
    """Runs the training of ``folder`` in the folder it was started in, into ``out``; its exit code."""
    words = [str(folder.resolve() / "config.toml"), "--out", str(out.resolve()), *more]
    back = Path.cwd()
    if start.folder.is_dir():
        os.chdir(start.folder)  # paths of data in the settings are relative to it
    try:
        if ranks == 1 and find_mpirun() is None:
            return subprocess.run([sys.executable, "-m", "medmpi.train", *words], check=False).returncode
        return launch(ranks, ["-m", "medmpi.train", *words])
    finally:
        os.chdir(back)


def may_differ(first: Run, start: Start, ranks: int) -> list[str]:
    """Why the same bits cannot be asked of the second run; empty: they can."""
    settings, why = first.settings, []
    if start.version != __version__:
        why.append(f"medmpi {start.version or 'of unknown version'} then, {__version__} now")
    if start.kernels and start.kernels != K.backend():
        why.append(f"kernels {start.kernels} then, {K.backend()} now")
    if settings.get("device", "cpu") != "cpu":
        why.append(f"it ran on {settings['device']}")
    if not settings.get("reproducible", False):
        if ranks != start.ranks:
            why.append(f"{start.ranks} ranks then, {ranks} now, without --reproducible")
        if settings.get("balance", False):
            why.append("--balance goes by the speed of the moment")
        if settings.get("parallel") == "auto":
            why.append("--parallel auto goes by times measured")
    return why


def judge(first: Run, second: Run, weights: tuple[Path, Path], why: Sequence[str], tolerance: float) -> Verdict:
    """Holds the second run against the first.

    Epochs that ended at the same step are compared. ``why`` says what keeps the bits from being the same; without it
    they must be. Otherwise losses must agree within ``tolerance`` of their size.
    """
    pairs = zip(first.rows, second.rows, strict=False)
    rows = [(a, b) for a, b in pairs if (a["epoch"], a["step"]) == (b["epoch"], b["step"])]
    if not rows:
        raise CompareError(f"{first.name} and {second.name} have no epoch in common that ended at the same step")
    worst = max(_distance(a[name], b[name]) for a, b in rows for name in ("train_loss", "val_loss"))
    table, scores_differ = _table(first, second, rows)
    what, off = _weights(*weights)
    differ = scores_differ or any(_distance(a[name], b[name]) > 0 for a, b in rows for name in _CURVES)
    if not differ and not off:
        how = "bit for bit" if off is False else "to all digits that metrics.csv has"
        return Verdict(True, f"reproduced {how}: {what}", table)
    figures = f"losses differ by up to {worst:.2g} of their size; {what}"
    if not why:
        return Verdict(False, f"not reproduced: {figures}, and the same bits were due", table)
    reasons = "the same bits were not due: " + "; ".join(why)
    if worst <= tolerance:
        return Verdict(True, f"reproduced within {tolerance:g}: {figures} ({reasons})", table)
    return Verdict(False, f"not reproduced within {tolerance:g}: {figures} ({reasons})", table)


def _table(first: Run, second: Run, rows: Sequence[tuple[dict[str, float], dict[str, float]]]) -> tuple[Table, bool]:
    """Figures of both, epoch by epoch and on the test split; whether the test scores differ."""
    title = f"{first.name} / {second.name}"
    head = ["", *(name.replace("_", " ") for name in _CURVES)]
    lines = [[f"epoch {a['epoch']:.0f}", *(f"{a[name]:.6g} / {b[name]:.6g}" for name in _CURVES)] for a, b in rows]
    differ = False
    if first.test is not None and second.test is not None and len(rows) == len(first.rows):
        pairs = [(float(first.test.get(n) or math.nan), float(second.test.get(n) or math.nan)) for n in _SCORES]
        differ = any(_distance(a, b) > 0 for a, b in pairs)
        told = ", ".join(f"{n} {a:.6g} / {b:.6g}" for n, (a, b) in zip(_SCORES, pairs, strict=True))
        title += f"; test {told}"
    return (title, head, lines), differ


def _distance(a: float, b: float) -> float:
    """Of two figures, relative to the larger; NaN equals NaN."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a - b) else math.inf


def _weights(first: Path, second: Path) -> tuple[str, bool | None]:
    """What two checkpoints' weights are to each other, and whether they differ; None: they are of other steps."""
    try:
        (a, about_a), (b, about_b) = (checkpoint.load(path) for path in (first, second))
    except (OSError, checkpoint.CheckpointError) as error:
        raise CompareError(str(error)) from None
    if about_a.get("step") != about_b.get("step"):
        return f"weights are of steps {about_a.get('step')} and {about_b.get('step')}, not compared", None
    if digest(a) == digest(b):
        return f"weights have SHA-256 {digest(a)[:16]} at step {about_a.get('step')}", False
    if a.keys() != b.keys():
        return "the networks have other parameters", True
    away = math.sqrt(sum(float(np.sum((a[k].astype(np.float64) - b[k]) ** 2)) for k in a))
    size = math.sqrt(sum(float(np.sum(a[k].astype(np.float64) ** 2)) for k in a))
    return f"weights differ by {away / max(size, 1e-300):.2g} of their norm", True


def digest(tensors: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def reproduce(folder: Path, out: Path, ranks: int | None, more: Sequence[str], tolerance: float) -> Verdict | int:
    """Trains again and judges; the exit code of a training that failed. CompareError for a folder that is no run."""
    first, start = read(folder), started(folder)
    ranks = ranks or start.ranks
    code = train_again(folder, start, out, ranks, more)
    if code:
        return code
    last = Path("checkpoints") / "last.safetensors"
    return judge(first, read(out), (folder / last, out / last), may_differ(first, start, ranks), tolerance)
