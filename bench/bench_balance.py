"""``python -m bench balance``: training with one rank slowed 3x in its computing, with and without ``--balance``.

The ideal is what the ranks' total speed allows: with r ranks, one of them f times slower, the time of the undisturbed
run times r / (r - 1 + 1 / f).
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from medmpi.parallel.run import find_mpirun

RANKS, FACTOR, EPOCHS = 2, 3.0, 6
FLAGS = [
    "--data=phantom:size=32,samples=1200", "--model=resnet18", "--width=32", "--batch-size=64", f"--epochs={EPOCHS}",
    "--threads=1", "--no-report", "--quiet",
]  # fmt: skip


def epoch_seconds(*flags: str, slow: bool) -> tuple[float, float]:
    """Median seconds of an epoch's steps from the third epoch on, and the imbalance of the last one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if slow:
        environment["MEDMPI_SLOW"] = f"{RANKS - 1}:{FACTOR}"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "medmpi.train", *FLAGS, *flags, "--out", folder + "/run"]
        subprocess.run([str(find_mpirun()), "-n", str(RANKS), *words], env=environment, check=True, capture_output=True)
        with (Path(folder) / "run" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    times = [float(row["t_comp"]) + float(row["t_comm"]) + float(row["t_wait"]) + float(row["t_io"]) for row in rows]
    return statistics.median(times[2:]), float(rows[-1]["imbalance"])


def main(options: argparse.Namespace) -> int:
    """Measures the three runs and prints them beside the ideal."""
    del options
    even, _ = epoch_seconds(slow=False)
    ideal = even * RANKS / (RANKS - 1 + 1 / FACTOR)
    print(f"undisturbed: {even:.2f} s per epoch; rank {RANKS - 1} {FACTOR:g}x slower, ideal {ideal:.2f} s")
    for name, flags in (("even shares", ()), ("--balance", ("--balance",))):
        seconds, imbalance = epoch_seconds(*flags, slow=True)
        print(f"{name}: {seconds:.2f} s, {seconds / ideal:.2f} of the ideal, imbalance {imbalance:.2f}", flush=True)
    return 0
