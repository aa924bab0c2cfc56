"""Inference on a stream: a watched folder or a C-STORE listener, until it is stopped.

Every rank takes images by itself (``spool``); ranks meet only at the start and at the end. SIGTERM, SIGUSR1 or
Ctrl-C's sibling ``--idle`` end the job after the images at hand; a second start goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi.infer.options import Options
from medmpi.infer.process import Processor
from medmpi.infer.results import ResultLog, latencies, read_results, write_summary, write_table
from medmpi.infer.spool import Incoming, Spool, Watched
from medmpi.infer.store import Store
from medmpi.train.failure import USAGE, Failure, on_root

if TYPE_CHECKING:
    from medmpi.infer.predictor import Predictor
    from medmpi.parallel import World

_POLL = 0.005
_REPORT = 10.0
_STOP = "stop"


def run_stream(options: Options, world: World, predictor: Predictor, say: Callable[[str], None]) -> None:
    """Processes images until told to stop. Collective at its start and end only."""
    assert options.out is not None
    out = Path(options.out).expanduser()
    listening = options.listen is not None
    folder = Path(options.watch).expanduser() if options.watch is not None else None
    if folder is not None and not folder.is_dir():
        raise Failure(f"--watch {folder}: no such folder", USAGE)
    answered: set[str] = on_root(world, lambda: _prepare(out, listening=listening))
    store = None
    if listening:
        store = _listen(options, out, world, answered, say)
    else:
        say(f"watching {folder}; {len(answered)} images have results already")
    spool: Spool = Incoming(out, world.rank, keep=options.keep) if folder is None else Watched(folder, out, answered)
    processor, log = Processor(predictor, out, options.masks), ResultLog(out, world.rank)
    try:
        _loop(options, out, world, spool, processor, log, say)
    finally:
        if store is not None:
            store.close()
        log.close()
    # Ranks end when they see the same request, within one image of each other.
    world.barrier("end of the stream")
    on_root(world, lambda: _finish(out, predictor, world.size, len(answered), say))


def _prepare(out: Path, *, listening: bool) -> set[str]:
    """The names of images with results; unfinished ones are put back."""
    (out / _STOP).unlink(missing_ok=True)
    answered = set(read_results(out))
    (Incoming if listening else Watched).prepare(out, answered)
    return answered


def _listen(options: Options, out: Path, world: World, answered: set[str], say: Callable[[str], None]) -> Store | None:
    """The listener, on rank 0."""
    kept: list[Store] = []

    def start() -> None:
        assert options.listen is not None
        waiting = {f.stem for f in (out / "incoming").glob("*.dcm")}
        known = answered | waiting
        kept.append(Store(out, port=options.listen, bind=options.bind, ae_title=options.ae_title, answered=set(known)))
        again = f"; {len(waiting)} images wait from before" if waiting else ""
        say(f"listening for C-STORE on {options.bind}:{kept[0].port} as {options.ae_title}{again}")

    on_root(world, start)
    return kept[0] if kept else None


def _loop(
    options: Options,
    out: Path,
    world: World,
    spool: Spool,
    processor: Processor,
    log: ResultLog,
    say: Callable[[str], None],
) -> None:
    last = reported = time.monotonic()
    mine: list[dict[str, Any]] = []
    told = 0
    stop = out / _STOP
    while True:
        if world.stop_requested():
            stop.touch()  # for the ranks that the signal did not reach
        if stop.exists():
            return
        taken = spool.next()
        now = time.monotonic()
        if taken is None:
            if options.idle and now - last > options.idle and not spool.waiting():
                return
            time.sleep(_POLL)
        else:
            file, name, arrived = taken
            result = processor(file, name)
            last = time.monotonic()
            if "error" in result and spool.again(file, name):
                continue
            finished = time.time()
            result |= {
                "file": str(spool.home(file)),
                "rank": world.rank,
                "at": finished,
                "latency_ms": round(1000 * (finished - arrived), 3),
            }
            log.add(result)
            spool.done(file)
            mine.append(result)
        if world.rank == 0 and now - reported > _REPORT:
            reported = now
            if len(mine) > told:
                _report(mine[told:], say)
                told = len(mine)


def _last_words(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the errors of files that could be read when they had changed."""
    good = {r["file"]: r["at"] for r in sorted(results, key=lambda r: float(r["at"])) if "error" not in r}
    return [r for r in results if "error" not in r or good.get(r["file"], 0.0) < r["at"]]


def _report(results: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    bad = sum("error" in r for r in results)
    found = latencies(results).get("from_arrival")
    times = "" if not found else f", from arrival to result p50 {found['p50']:.1f} p99 {found['p99']:.1f} ms"
    say(f"rank 0: {len(results)} more images, {bad} bad{times}, {results[-1]['file']}")


def _finish(out: Path, predictor: Predictor, ranks: int, before: int, say: Callable[[str], None]) -> None:
    results = _last_words(list(read_results(out).values()))
    write_table(out, results, predictor.classes, segments=predictor.segments)
    bad = [r for r in results if "error" in r]
    times = latencies(results)
    spans = [float(r["at"]) for r in results]
    seconds = max(spans) - min(spans) if len(spans) > 1 else 0.0
    summary = {
        "checkpoint": str(predictor.file),
        "task": predictor.spec.task,
        "classes": list(predictor.classes),
        "temperature": predictor.decision.temperature,
        "threshold": predictor.decision.threshold,
        "files": len(results),
        "bad": len(bad),
        "ranks": ranks,
        "images_per_s": round((len(results) - 1) / seconds, 3) if seconds else None,
        "latency_ms": times,
    }
    write_summary(out, summary)
    shown = times.get("from_arrival", {})
    line = ", ".join(f"{name} {value:.1f}" for name, value in shown.items())
    new = len(results) - before
    say(f"{new} images in this run, {len(bad)} bad in all; ms from arrival to result: {line or 'none'}")
