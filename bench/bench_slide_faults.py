"""``python -m bench slide_faults --trials N``: kill -9 of whole-slide jobs at random, then the rerun, byte by byte.

Each trial is a fresh run folder that is struck one to three times: SIGKILL at a random moment to a process that does
the job alone, to a random rank of two, or to an array task, start-up included. Checked: the next run does what is
missing and ends with 0, scores and heatmap are the bytes of the unbroken run, no claims or temporary files are left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmpi.parallel.run import find_mpirun

from .bench_slide import draw_slide, environment, ranks_in, save_model

SIDE, WINDOW, STRIDE, PER_TASK = 3072, 32, 16, 8
KINDS = ("process", "rank", "task")
LIMIT = 300.0  # seconds for a rerun of a few seconds, on a busy machine


@dataclass
class Trial:
    """What was struck, what had been done by then, and what was wrong in the end."""

    strikes: list[str] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Job:
    """The folder of all trials: a slide's store, a model, and the unbroken run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        draw_slide(root / "slide.tif", SIDE)
        save_model(root / "model.safetensors", window=WINDOW)
        self.medmpi("prepare", str(root / "slide.tif"), "--out", str(root / "stores"), "--group-size", "4")
        begin = time.monotonic()
        self.run("whole")
        self.span = time.monotonic() - begin
        self.whole = self.contents("whole")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "medmpi.cli", "slide", *words]

    def words(self, name: str) -> list[str]:
        root = self.root
        return ["run", str(root / "stores"), "--out", str(root / name), "--model", str(root / "model.safetensors"),
                "--stride", str(STRIDE), "--no-tune"]  # fmt: skip

    def medmpi(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=environment(), capture_output=True, text=True, check=True, timeout=LIMIT
        )

    def run(self, name: str) -> None:
        self.medmpi(*self.words(name))
        self.medmpi("stitch", str(self.root / name), "--no-png")

    def results(self, name: str) -> list[Path]:
        return sorted((self.root / name / "results").rglob("*.safetensors"))

    def contents(self, name: str) -> dict[str, str]:
        """Name -> digest of scores and heatmaps."""
        folder = self.root / name
        files = [*self.results(name), *folder.glob("heatmaps/*.h5")]
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    def start(self, kind: str, name: str, chance: random.Random) -> subprocess.Popen[bytes]:
        """Whatever is to be struck."""
        command = self.command(*self.words(name))
        if kind == "rank":
            command = [str(find_mpirun()), "-n", "2", *command]
        elif kind == "task":
            if not (self.root / name / "manifest.json").exists():
                self.medmpi(*self.words(name), "--only-manifest")
            listing = self.root / f"{name}.txt"
            listing.write_text("".join(f"{i}\n" for i in range(len(self.whole) - 1)))
            task = chance.randrange(-(-(len(self.whole) - 1) // PER_TASK))
            command = self.command("task", str(self.root / name), "--list", str(listing), "--task", str(task),
                                   "--per-task", str(PER_TASK))  # fmt: skip
        return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trial(job: Job, number: int, seed: int) -> Trial:
    """One run folder, struck, run again, compared."""
    chance, found, name = random.Random(seed), Trial(), f"trial{number}"
    for _ in range(chance.randint(1, 3)):
        kind = chance.choice(KINDS)
        process = job.start(kind, name, chance)
        time.sleep(chance.uniform(0.3, 1.2 * job.span))
        if process.poll() is not None:  # too late: it was done
            continue
        if kind == "rank":
            ranks = ranks_in(job.root / name)
            if ranks:
                os.kill(chance.choice(ranks), signal.SIGKILL)
        else:
            process.kill()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            found.problems.append(f"{kind}: the other ranks did not end")
            process.kill()
            process.wait()
        found.strikes.append(kind)
        found.done.append(len(job.results(name)))
    try:
        job.run(name)
    except subprocess.CalledProcessError as error:
        found.problems.append(f"the rerun ended with {error.returncode}: {error.stderr[-500:]}")
        return found
    if job.contents(name) != job.whole:
        found.problems.append("other bytes than the unbroken run's")
    left = [*(job.root / name).rglob("*.tmp*"), *(job.root / name / "claims").iterdir()]
    found.problems += [f"left behind: {path.name}" for path in left]
    return found


def main(options: argparse.Namespace) -> int:
    """Runs the trials and sums them up; 1 if anything went wrong."""
    results, trials = [], options.trials or 50
    with tempfile.TemporaryDirectory(prefix="medmpi-slide-") as root:
        job = Job(Path(root))
        items = len(job.whole) - 1
        print(f"unbroken: {items} items in {job.span:.1f} s", flush=True)
        for i in range(trials):
            results.append(trial(job, i, options.seed + i))
            verdict = "; ".join(results[-1].problems) or "same bytes"
            struck = ", ".join(
                f"{k} at {n}/{items}" for k, n in zip(results[-1].strikes, results[-1].done, strict=True)
            )
            print(f"trial {i + 1}/{trials}: {struck or 'none'}: {verdict}", flush=True)
    strikes = Counter(kind for result in results for kind in result.strikes)
    bad = sum(bool(result.problems) for result in results)
    amid = sum(0 < n < items for result in results for n in result.done)
    struck = ", ".join(f"{n} of a {kind}" for kind, n in sorted(strikes.items()))
    print(f"{len(results)} trials, {strikes.total()} kills ({struck}; {amid} amid the items): {bad} with problems")
    if options.out is not None:
        from .machine import describe

        line: dict[str, Any] = {
            "family": "slide_faults", "case": f"kill -9, {items} items", "trials": len(results),
            "strikes": dict(strikes), "amid": amid, "problems": bad, "machine": describe(),
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return int(bad > 0)
