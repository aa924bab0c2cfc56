"""A preparation from settings to manifest, on all ranks or as one task of an array."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi import __version__
from medmpi import kernels as K
from medmpi.files import write_whole
from medmpi.prepare.book import Book, claim
from medmpi.prepare.options import Options
from medmpi.prepare.plan import Unit, make_units
from medmpi.prepare.steps import mean_and_std
from medmpi.prepare.work import Record, Worker
from medmpi.train.failure import BAD_DATA, Failure, StopRequested, on_root
from medmpi.train.progress import clock

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.parallel.work import Outcome

_INTERVAL = 10.0


def run(options: Options, world: World) -> None:
    """Prepares all files. Collective. Failure with exit code 3 where some could not be used; all others are done."""
    from medmpi.parallel import collect

    started = time.monotonic()
    if options.threads is not None:
        K.set_threads(options.threads)
    out = Path(options.out).expanduser()
    units, classes = on_root(world, lambda: _claimed(out, options))
    mine = units if options.shard is None else units[options.shard[0] :: options.shard[1]]
    say = _printer(world, options.quiet)
    files = sum(len(u.items) for u in mine)
    part = "" if options.shard is None else f", part {options.shard[0]} of {options.shard[1]}"
    say(f"medmpi prepare {__version__}: {files} files{part}, {world.size} ranks, {K.threads()} threads each, to {out}")
    statistics = None
    if options.normalise == "dataset":
        if options.shard is not None:
            known = on_root(world, lambda: Book(out, options, "statistics").read())
            if len(known) < len(units):
                raise Failure("--normalise dataset with --shard: run once without --shard, which needs all files")
        first = _pass(options, world, mine, classes, "statistics", None, say, collect)
        statistics = on_root(world, lambda: mean_and_std([tuple(r["moments"]) for r in first]))
        say(f"mean {statistics[0]:.6g}, std {statistics[1]:.6g} over all images")
    records = _pass(options, world, mine, classes, "units", statistics, say, collect)
    bad = on_root(world, lambda: _finish(out, options, units, classes, records, statistics))
    made = sum(len(r["outputs"]) for r in records)
    seconds = time.monotonic() - started
    if world.rank == 0:
        kept = sum(1 for r in records if r.get("kept"))
        again = f" ({kept} of {len(records)} units were there already)" if kept else ""
        rate = f"{(files) / max(seconds, 1e-9):.1f} files/s"
        print(f"{made} results in {out}{again}, {len(bad)} bad files, {clock(seconds)}, {rate}", flush=True)
    if bad:
        raise Failure(
            f"{len(bad)} of {files} files could not be used, see {out / 'bad.csv'}: {bad[0]['error']}", BAD_DATA
        )


def _claimed(out: Path, options: Options) -> tuple[list[Unit], tuple[str, ...]]:
    planned = make_units(options)
    claim(out, options)
    for stale in out.rglob(".*.tmp*"):
        if options.shard is None:  # another task of the array may be at work on it
            stale.unlink(missing_ok=True)
    return planned


def _pass(
    options: Options,
    world: World,
    units: list[Unit],
    classes: tuple[str, ...],
    stage: str,
    statistics: tuple[float, float] | None,
    say: Callable[[str], None],
    collect: Callable[..., list[Outcome[Record] | None] | None],
) -> list[Record]:
    """One pass over the units; the records on rank 0, elsewhere none."""
    book = Book(Path(options.out).expanduser(), options, stage, world.rank)
    known = on_root(world, book.read)
    worker = Worker(
        options, classes, book, known, statistics, only_statistics=stage == "statistics", stop=world.request_stop
    )
    progress = _Progress(len(units), say)
    note = (lambda outcome: progress.step(outcome.value)) if world.rank == 0 else None
    try:
        outcomes = collect(world, worker, units, on_result=note)
    finally:
        worker.close()
    world.barrier()  # all results are on disk
    problem: tuple[str, bool] | None = None
    if outcomes is not None:
        if any(o is None for o in outcomes):
            problem = ("", True)
        else:
            failed = [o for o in outcomes if o is not None and o.error is not None]
            if failed:
                name = units[failed[0].index].key
                problem = (f"{name}: {str(failed[0].error).strip().splitlines()[-1]}", False)
    problem = world.broadcast(problem)
    if problem is not None:
        if problem[1]:
            raise StopRequested("a file")
        raise Failure(problem[0])
    return [o.value for o in outcomes or [] if o is not None and o.value is not None]


class _Progress:
    """One line every ten seconds: how far, how fast, how long still."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say = total, say
        self.done = self.kept = self.bad = 0
        self.start = self.printed = time.monotonic()

    def step(self, record: Record | None) -> None:
        self.done += 1
        self.kept += bool(record and record.get("kept"))
        self.bad += len(record["bad"]) if record else 0
        now = time.monotonic()
        if now - self.printed < _INTERVAL or self.done == self.total:
            return
        self.printed = now
        rate = max(self.done - self.kept, 1) / max(now - self.start, 1e-9)
        left = clock((self.total - self.done) / rate)
        self.say(f"{self.done}/{self.total} units, {self.bad} bad files, {rate:.1f} units/s, ends in {left}")


def _finish(
    out: Path,
    options: Options,
    units: list[Unit],
    classes: tuple[str, ...],
    records: list[Record],
    statistics: tuple[float, float] | None,
) -> list[dict[str, str]]:
    """bad.csv, and the manifest where all units are done; the bad files."""
    bad: list[dict[str, str]] = [entry for record in records for entry in record["bad"]]
    part = "" if options.shard is None else f"-{options.shard[0]}-of-{options.shard[1]}"
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "error"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(bad)
    write_whole(out / f"bad{part}.csv", text.getvalue())
    if options.shard is None and len(records) == len(units):
        plain = [{k: v for k, v in record.items() if k not in ("kept", "moments")} for record in records]
        manifest: dict[str, Any] = {
            "medmpi": __version__,
            "settings": options.identity(),
            "settings_digest": options.digest(),
            "classes": list(classes),
            "mean_and_std": None if statistics is None else list(statistics),
            "bad": bad,
        }
        if options.format == "hdf5":
            manifest["shards"] = [o for record in records for o in record["outputs"]]
        # A unit a line: Python indents JSON slowly, and every rank would wait for it.
        lines = ",\n".join(map(json.dumps, plain))
        write_whole(out / "manifest.json", f'{json.dumps(manifest, indent=1)[:-2]},\n "units": [\n{lines}\n]}}\n')
    return bad


def _printer(world: World, quiet: bool) -> Callable[[str], None]:
    def say(line: str) -> None:
        if world.rank == 0 and not quiet:
            print(line, file=sys.stdout, flush=True)

    return say
