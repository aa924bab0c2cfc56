"""Tiny runs of the trainer: in this process on one rank, or as a command under mpirun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.nn import checkpoint
from medmpi.parallel import launch as launch_module
from medmpi.train.config import parse
from medmpi.train.main import main
from medmpi.train.options import Options

FLAGS = [
    "--data=phantom:size=16,samples=48", "--model=resnet18", "--width=4", "--stem=small", "--batch-size=12",
    "--epochs=3", "--lr=0.02", "--no-report", "--threads=1",
]  # fmt: skip


PATIENCE = 300.0  # seconds for what takes a few on a machine with nothing else to do


def options(*flags: str) -> Options:
    """The settings of a tiny run with changes."""
    return parse([*FLAGS, *flags])


def train(*flags: object) -> int:
    """Trains in this process, on one rank; the exit code."""
    if launch_module._guard is not None:
        launch_module._guard.stop = False  # what a signal to an earlier run of this process left
    return main([*FLAGS, *map(str, flags)])


def command(ranks: int, *flags: object, program: str = "-m medmpi.train", tiny: bool = True) -> list[str]:
    """The command line of a run on so many ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"
    words = [*(FLAGS if tiny else []), *map(str, flags)]
    return [mpirun, "-n", str(ranks), sys.executable, *program.split(), *words]


def environment() -> dict[str, str]:
    """One thread per rank, and this source tree first."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONWARNINGS": ""}


def launch(ranks: int, *flags: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs under mpirun with a time limit."""
    return subprocess.run(
        command(ranks, *flags, **how), env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def state(folder: Path) -> dict[str, NDArray[Any]]:
    """Weights and training state of the newest checkpoint, and the rows of metrics without times."""
    folder = Path(folder)
    newest = max(folder.glob("checkpoints/step-*.state.safetensors"))
    weights, _ = checkpoint.load(str(newest).replace(".state", ""))
    training, metadata = checkpoint.load(newest)
    found = {**weights, **{f"state/{name}": value for name, value in training.items()}}
    position = json.loads(metadata["medmpi.state"])["position"]
    position.pop("seconds")
    found["position"] = np.array(json.dumps(position))
    rows = [line.split(",")[:12] for line in (folder / "metrics.csv").read_text().splitlines()]
    found["metrics"] = np.array(rows)
    return found


def assert_same(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
