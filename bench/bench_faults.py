"""``python -m bench faults --trials N``: strikes ranks of training runs at random and checks what becomes of it.

Each trial is a supervised run (``-n 3 --supervise``) that is struck one to three times: SIGKILL, SIGSTOP, SIGTERM or
SIGUSR1 to a random rank at a random moment, start-up, evaluation and checkpoints included. Checked: nothing outlives
the limit, every checkpoint is readable after every strike, every restart goes on, and the finished run has the loss
curve and the weights of the unbroken one, bit for bit (``--reproducible``; the number of ranks changes on the way).

With ``--out`` each trial appends its line as it ends, and a campaign that was interrupted goes on where it stopped:
trials of this ``--seed`` that the file holds are not run again. A trial that went wrong says what its ranks were doing.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medmpi.nn import checkpoint
from medmpi.parallel.guard import process_state
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
# all of these times as many as there are programs to a core: what is waited for needs a core as well
_TAIL = 4000  # characters of the output of a trial that went wrong


@dataclass
class Trial:
    """What happened in one trial."""

    seed: int
    strikes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from a strike to the end of the ranks struck
    starts: int = 0
    load: float = 0.0  # processes that wanted a core at the end, on average over a minute
    output: str = ""  # the end of what the run said, where there were problems


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
    result = Trial(seed)
    with folder.with_suffix(".out").open("w") as output:
        _strike(folder, output, result, span, reference)
    result.load = round(os.getloadavg()[0], 1)
    if result.problems:
        result.output = folder.with_suffix(".out").read_text(errors="replace")[-_TAIL:]
    return result


def _strike(folder: Path, output: Any, result: Trial, span: float, reference: Path) -> None:
    chance = random.Random(result.seed)
    left = chance.randint(1, 3)
    begin = time.monotonic()
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
            limit = max(LIMIT, SPANS * span) * _programs()
            code = process.wait(max(1.0, begin + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            result.problems.append(f"still running after {limit:.0f} s: {_doing(list(ranks_in(folder)))}")
            process.kill()
            for pid in ranks_in(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        if code != 85 or result.starts > 9:
            break
        resume = ("--resume",)
    if code != 0:
        result.problems.append(f"ended with exit code {code}")
    else:
        result.problems += differences(folder, reference)


def _doing(processes: list[int]) -> str:
    """The processes' states; Python's stacks of those that can go to the run's output."""
    for pid in processes:
        with contextlib.suppress(OSError):
            if process_state(pid) in ("R", "S", "D") and _catches(pid, signal.SIGUSR2):
                os.kill(pid, signal.SIGUSR2)
    time.sleep(0.5)
    return ", ".join(f"process {pid} {process_state(pid) or 'gone'}" for pid in processes) or "no ranks"


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal, which ends it otherwise."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


def _programs() -> float:
    """How many programs want each core, one at least."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def _pause(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits; whether the run is over before that."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _until_gone(folder: Path, job: str, result: Trial, limit: float) -> float:
    """Seconds until no rank of the start that was struck is left."""
    begin, late = time.monotonic(), False
    while left := [pid for pid, start in ranks_in(folder).items() if start == job]:
        if time.monotonic() - begin > limit * _programs() * (3 if late else 1):
            when = f"ranks still there after {time.monotonic() - begin:.0f} s"
            result.problems.append(f"{result.strikes[-1]}: {when}: {_doing(left)}")
            if late:
                break
            late = True  # do they go at all?
        time.sleep(0.05)
    return round(time.monotonic() - begin, 2)


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


def campaign(seeds: list[int], root: Path, jobs: int, record: Callable[[Trial], None]) -> None:
    """An unbroken run, then a trial for each seed, ``jobs`` at a time; prints a line for each."""
    reference = root / "unbroken"
    begin = time.monotonic()
    with (root / "unbroken.out").open("w") as output:
        subprocess.run(command(reference), stdout=output, stderr=output, check=True)
    span, begin = time.monotonic() - begin, time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(trial, root / f"trial{seed}", seed, span, reference) for seed in seeds]
        for done, future in enumerate(as_completed(running), 1):
            result = future.result()
            record(result)
            times = " ".join(f"{s:.1f}" for s in result.seconds)
            verdict = "; ".join(result.problems) or "as unbroken"
            struck = " ".join(result.strikes) or "none"
            left = (time.monotonic() - begin) / done * (len(seeds) - done)
            count = f"{done} of {len(seeds)}, {left / 60:.0f} min left"
            print(f"trial {result.seed} ({count}): {struck} (gone in {times} s): {verdict}", flush=True)


def recorded(path: Path | None, seeds: range) -> list[Trial]:
    """The trials of these seeds that a results file holds."""
    if path is None or not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Trial(**line["trial"]) for line in lines if line["trial"]["seed"] in seeds]


def main(options: argparse.Namespace) -> int:
    """Runs the campaign and sums it up; 1 if anything went wrong."""
    from .machine import describe

    seeds = range(options.seed, options.seed + (options.trials or 20))
    results = recorded(options.out, seeds)
    missing = sorted(set(seeds) - {result.seed for result in results})
    machine = describe()

    def record(result: Trial) -> None:
        results.append(result)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps({"family": "faults", "trial": asdict(result), "machine": machine}) + "\n")

    if missing:
        with tempfile.TemporaryDirectory() as root:
            campaign(missing, Path(root), options.jobs, record)
    print(summary(results))
    return int(any(result.problems for result in results))


def summary(results: list[Trial]) -> str:
    """All trials in one line."""
    strikes = Counter(name for result in results for name in result.strikes)
    seconds = [s for result in results for s in result.seconds] or [0.0]
    listed = ", ".join(f"{n} {name}" for name, n in sorted(strikes.items()))
    bad = sum(bool(result.problems) for result in results)
    return (
        f"{len(results)} trials, {listed}, {sum(r.starts for r in results)} starts: {bad} with problems; ranks gone "
        f"{statistics.median(seconds):.1f} s after a strike (median), at most {max(seconds):.1f} s"
    )
