"""``python -m bench faults --trials N``: strikes ranks of training runs at random and checks what becomes of it.

Each trial is a supervised run (``-n 3 --supervise``) that is struck one to three times: SIGKILL, SIGSTOP, SIGTERM or
SIGUSR1 to a random rank at a random moment, start-up, evaluation and checkpoints included. Checked: nothing outlives
the limit, every checkpoint is readable after every strike, every restart goes on, and the finished run has the loss
curve and the weights of the unbroken one, bit for bit (``--reproducible``; the number of ranks changes on the way).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medmpi.nn import checkpoint
from medmpi.train.checkpoints import Checkpoints

RANKS, TIMEOUT = 3, 3.0
FLAGS = [
    "--data=phantom:size=16,samples=60", "--model=mini_xception", "--width=4", "--batch-size=12", "--epochs=4",
    "--threads=1", "--no-report", f"--timeout={TIMEOUT}", "--reproducible", "--checkpoint-every=2",
]  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGUSR1)
LIMIT = 120.0  # seconds in which a run must be over, strikes included; undisturbed it takes a few
SPANS = 8.0  # or so many times what the undisturbed run took, where the machine is slow
SLACK = 8.0  # seconds more than the watchdog's, or as long as a run, in which struck ranks must be gone


@dataclass
class Trial:
    """What happened in one trial."""

    strikes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from a strike to the end of the ranks struck
    starts: int = 0


def command(folder: Path, *more: str) -> list[str]:
    """A supervised run into a folder."""
    words = ["-n", str(RANKS), "--supervise", "9", *FLAGS, "--out", str(folder), *more]
    return [sys.executable, "-m", "medmpi.train", *words]


def ranks_in(folder: Path) -> dict[int, str]:
    """Process ids of the ranks that run in a folder, with the start that they belong to."""
    found = {}
    for name in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        job = [word for word in environment if word.startswith(b"MEDMPI_JOB=")]
        if job and str(folder).encode() in words and any(w.startswith((b"PMI_RANK=", b"OMPI_")) for w in environment):
            found[int(name)] = job[0].decode()
    return found


def trial(folder: Path, seed: int, span: float, reference: Path) -> Trial:
    """One run, struck at random; ``span`` is about how long it takes undisturbed."""
    chance, result = random.Random(seed), Trial()
    left = chance.randint(1, 3)
    limit = max(LIMIT, SPANS * span)
    end = time.monotonic() + limit
    output = folder.with_suffix(".out").open("w")
    resume: tuple[str, ...] = ()
    while True:
        result.starts += 1
        process = subprocess.Popen(command(folder, *resume), stdout=output, stderr=output)
        while left and process.poll() is None:
            if _pause(process, chance.uniform(0.2, 0.8 * span)) or not (ranks := ranks_in(folder)):
                continue
            victim = chance.choice(sorted(ranks))
            number = chance.choice(SIGNALS)
            try:
                os.kill(victim, number)
            except ProcessLookupError:
                continue
            left -= 1
            result.strikes.append(number.name)
            result.seconds.append(_until_gone(folder, ranks[victim], result, TIMEOUT + max(SLACK, span)))
            _check_readable(folder, result)
        try:
            code = process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            result.problems.append(f"still running after {limit:.0f} s")
            process.kill()
            for pid in ranks_in(folder):
                os.kill(pid, signal.SIGKILL)
            return result
        if code != 85 or result.starts > 9:
            break
        resume = ("--resume",)
    if code != 0:
        result.problems.append(f"ended with exit code {code}")
    else:
        result.problems += differences(folder, reference)
    return result


def _pause(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits; whether the run is over before that."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _until_gone(folder: Path, job: str, result: Trial, limit: float) -> float:
    """Seconds until no rank of the start that was struck is left."""
    begin = time.monotonic()
    while job in ranks_in(folder).values():
        if time.monotonic() - begin > limit:
            result.problems.append(f"{result.strikes[-1]}: ranks still there after {limit:.0f} s")
            break
        time.sleep(0.02)
    return time.monotonic() - begin


def _check_readable(folder: Path, result: Trial) -> None:
    try:
        restored = Checkpoints(folder / "checkpoints").restore() if folder.exists() else None
    except Exception as error:
        result.problems.append(f"checkpoint: {error}")
    else:
        result.problems += [f"checkpoint rejected: {line}" for line in (restored.rejected if restored else [])]


def differences(folder: Path, reference: Path) -> list[str]:
    """How a finished run differs from the unbroken one: rows of metrics, weights."""
    found = []
    names = ("epoch", "step", "train_loss", "val_loss", "val_accuracy")
    rows = []
    for run in (folder, reference):
        with (run / "metrics.csv").open() as file:
            rows.append([[row[name] for name in names] for row in csv.DictReader(file)])
    if rows[0] != rows[1]:
        found.append(f"metrics differ: {rows[0]} instead of {rows[1]}")
    mine, other = (checkpoint.load(run / "checkpoints" / "last.safetensors")[0] for run in (folder, reference))
    unequal = [name for name in other if not np.array_equal(mine[name], other[name])]
    if unequal:
        found.append(f"weights differ in {', '.join(unequal[:3])}")
    return found


def campaign(trials: int, seed: int, root: Path, jobs: int) -> list[Trial]:
    """An unbroken run, then so many trials, ``jobs`` at a time; prints a line for each."""
    reference = root / "unbroken"
    begin = time.monotonic()
    with (root / "unbroken.out").open("w") as output:
        subprocess.run(command(reference), stdout=output, stderr=output, check=True)
    span = time.monotonic() - begin
    done = []
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(trial, root / f"trial{i}", seed + i, span, reference) for i in range(trials)]
        for i, future in enumerate(as_completed(running)):
            result = future.result()
            done.append(result)
            times = " ".join(f"{s:.1f}" for s in result.seconds)
            verdict = "; ".join(result.problems) or "as unbroken"
            struck = " ".join(result.strikes) or "none"
            print(f"trial {i + 1}/{trials}: {struck} (gone in {times} s): {verdict}", flush=True)
    return done


def main(options: argparse.Namespace) -> int:
    """Runs the campaign and sums it up; 1 if anything went wrong."""
    with tempfile.TemporaryDirectory() as root:
        results = campaign(options.trials or 20, options.seed, Path(root), options.jobs)
    strikes = Counter(name for result in results for name in result.strikes)
    bad = sum(bool(result.problems) for result in results)
    longest = max((s for result in results for s in result.seconds), default=0.0)
    listed = ", ".join(f"{n} {name}" for name, n in sorted(strikes.items()))
    print(f"{len(results)} trials, {listed}: {bad} with problems; ranks gone at most {longest:.1f} s after a strike")
    if options.out is not None:
        from .machine import describe

        line = {
            "family": "faults", "trials": len(results), "strikes": dict(strikes), "problems": bad,
            "seconds": {"longest": longest, "median": statistics.median(s for r in results for s in r.seconds)},
            "starts": sum(result.starts for result in results), "machine": describe(),
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return int(bad > 0)
