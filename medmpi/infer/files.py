"""Inference on files and folders, over all ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi.data.folder import images_below, outside
from medmpi.data.readers import name_of
from medmpi.infer.options import Options
from medmpi.infer.process import Processor, Result, state_of
from medmpi.infer.results import ResultLog, latencies, read_results, write_summary, write_table
from medmpi.train.failure import BAD_DATA, USAGE, Failure, StopRequested, on_root
from medmpi.train.progress import clock

if TYPE_CHECKING:
    from medmpi.infer.predictor import Predictor
    from medmpi.parallel import World
    from medmpi.parallel.work import Outcome

_INTERVAL = 10.0


@dataclass(frozen=True)
class Item:
    """One input file and the name of its results."""

    file: Path
    name: str


def find_items(inputs: tuple[str, ...], out: Path) -> list[Item]:
    """All image files named or below the folders named. Failure where there are none."""
    found: list[Item] = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_file():
            found.append(Item(path, name_of(path)))
        elif path.is_dir():
            files = outside(images_below(path), out)
            found += [Item(f, f.relative_to(path).with_name(name_of(f)).as_posix()) for f in files]
        else:
            raise Failure(f"{path}: no such file or folder", USAGE)
    if not found:
        raise Failure(f"{', '.join(inputs)}: no image file there", USAGE)
    counts: dict[str, int] = {}
    unique = []
    for item in found:
        number = counts[item.name] = counts.get(item.name, 0) + 1
        unique.append(item if number == 1 else Item(item.file, f"{item.name}~{number}"))
    return unique


def run_files(options: Options, world: World, predictor: Predictor, say: Callable[[str], None]) -> None:
    """Every file once, on whichever rank is free. Collective. Failure with exit code 3 where some cannot be used."""
    from medmpi.parallel import collect

    assert options.out is not None
    out = Path(options.out).expanduser()
    items, done = on_root(world, lambda: _plan(options, out))
    todo = [item for item in items if item.name not in done]
    if done:
        say(f"{len(done)} of {len(items)} files have results already")
    processor = Processor(predictor, out, options.masks)
    log = ResultLog(out, 0)
    progress = _Progress(len(todo), say)

    def note(outcome: Outcome[Result]) -> None:
        if outcome.value is not None:
            log.add({**outcome.value, "rank": outcome.rank, "at": time.time()})
        progress.step(outcome.value)

    started = time.monotonic()
    outcomes = collect(world, lambda item: processor(item.file, item.name), todo, on_result=note)
    seconds = time.monotonic() - started
    log.close()
    problem = _problem(outcomes, todo)
    problem = world.broadcast(problem)
    if problem is not None:
        raise StopRequested("an image") if problem == "" else Failure(problem)
    bad = on_root(world, lambda: _finish(out, predictor, items, len(todo), seconds, world.size))
    if world.rank == 0:
        rate = f"{len(todo) / max(seconds, 1e-9):.1f} images/s"
        print(
            f"{len(items)} files, {len(bad)} bad, results in {out / 'results.csv'}; {clock(seconds)}, {rate}",
            flush=True,
        )
    if bad:
        raise Failure(f"{len(bad)} of {len(items)} files could not be used: {bad[0]}", BAD_DATA)


def _plan(options: Options, out: Path) -> tuple[list[Item], set[str]]:
    """The items, and the names of those whose results are there for the file as it is now."""
    items = find_items(options.inputs, out)
    known = read_results(out)
    done = set()
    for item in items:
        result = known.get(item.name)
        if result is None or "error" in result or result["file"] != str(item.file):
            continue
        if result["state"] == state_of(item.file) and all((out / m).is_file() for m in result.get("masks", [])):
            done.add(item.name)
    return items, done


def _problem(outcomes: list[Outcome[Result] | None] | None, todo: list[Item]) -> str | None:
    """What ends the job: an error of ours, or "" for a stop on request."""
    if outcomes is None:
        return None
    for outcome in outcomes:
        if outcome is not None and outcome.error is not None:
            return f"{todo[outcome.index].file}: {outcome.error.strip().splitlines()[-1]}"
    return "" if any(outcome is None for outcome in outcomes) else None


def _finish(out: Path, predictor: Predictor, items: list[Item], fresh: int, seconds: float, ranks: int) -> list[str]:
    """Table and summary; the errors of bad files."""
    known = read_results(out)
    results = [known[item.name] for item in items if item.name in known]
    write_table(out, results, predictor.classes, segments=predictor.segments)
    bad = [str(r["error"]) for r in results if "error" in r]
    summary: dict[str, Any] = {
        "checkpoint": str(predictor.file),
        "task": predictor.spec.task,
        "classes": list(predictor.classes),
        "temperature": predictor.decision.temperature,
        "threshold": predictor.decision.threshold,
        "files": len(items),
        "bad": len(bad),
        "ranks": ranks,
        "seconds": round(seconds, 3),
        "images_per_s": round(fresh / max(seconds, 1e-9), 3),
        "latency_ms": latencies(results),
    }
    write_summary(out, summary)
    return bad


class _Progress:
    """One line every ten seconds: how far, how fast, how long still."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say, self.done, self.bad = total, say, 0, 0
        self.start = self.printed = time.monotonic()

    def step(self, result: Result | None) -> None:
        self.done += 1
        self.bad += bool(result and "error" in result)
        now = time.monotonic()
        if now - self.printed < _INTERVAL or self.done == self.total:
            return
        self.printed = now
        rate = self.done / max(now - self.start, 1e-9)
        left = clock((self.total - self.done) / rate)
        self.say(f"{self.done}/{self.total} images, {self.bad} bad, {rate:.1f} images/s, ends in {left}")


def printer(world: World, *, quiet: bool) -> Callable[[str], None]:
    """Prints lines on rank 0."""

    def say(line: str) -> None:
        if world.rank == 0 and not quiet:
            print(line, file=sys.stdout, flush=True)

    return say
