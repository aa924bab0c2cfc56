"""``medmpi slide tune-groups``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmpi.data import DataError
from medmpi.slide.commands.options import memory, parser, positive, store_paths
from medmpi.slide.cost import Cost, estimate
from medmpi.slide.launch import DONE, UsageError, say, usage
from medmpi.slide.store import Store
from medmpi.slide.tune import SIZES, best, measure

_TILE = 448 * 448 * 3  # a patch in memory, as S4 counts


def main(argv: Sequence[str]) -> int:
    """Prints read times by group size and picks one; with a rate or a model, what the job will cost."""
    p = parser("tune-groups", "The fastest group size on a file system, and what a job will cost.")
    p.add_argument("folder", type=Path, help="a folder on the file system of the stores")
    p.add_argument("--sizes", type=positive, nargs="+", default=list(SIZES), help="patches a group to try")
    p.add_argument("--repeats", type=positive, default=3)
    p.add_argument("--memory", type=memory, help="memory of a task: no group may be larger (448x448 tiles)")
    cost = p.add_argument_group("cost of a job (tables I to III of the seed paper)")
    cost.add_argument("--cores", type=positive, help="cores that the job may use")
    cost.add_argument("--cores-per-task", type=positive, default=1)
    cost.add_argument("--slides", type=positive, help="number of slides")
    cost.add_argument("--patches", type=positive, help="patches a slide, on average (S4: 27,166)")
    cost.add_argument("--stores", nargs="+", help="or stores that are there: their own numbers of patches")
    cost.add_argument("--stride", type=positive, default=16)
    cost.add_argument("--windows-per-second", type=float, help="windows a second and core")
    cost.add_argument("--run", type=Path, help="or a finished run: its own rate, per process")
    cost.add_argument("--model", help="or a classifier: it is timed here, on one core")
    args = p.parse_args(argv)
    speeds = measure(args.folder, sorted(args.sizes), repeats=args.repeats)
    say("patches      MiB   whole group   patch by patch    gain   ms a patch")
    for s in speeds:
        say(
            f"{s.size:7} {s.bytes / 2**20:8.1f} {s.whole:11.4f} s {s.single:14.3f} s {s.gain:7.1f}"
            f" {1000 * s.per_patch:12.3f}"
        )
    with usage():
        chosen = best(speeds, largest=None if args.memory is None else args.memory // _TILE)
    say(f"group size: {chosen.size} patches")
    if args.cores is None:
        return DONE
    if args.stores is None and (args.slides is None or args.patches is None):
        raise UsageError("the cost needs --stores, or --slides and --patches")
    patches = [args.patches] * args.slides if args.stores is None else _patches(args.stores)
    with usage():
        found = estimate(
            patches, cores=args.cores, stride=args.stride, group_size=chosen.size, cores_per_task=args.cores_per_task,
            window_seconds=_window_seconds(args.windows_per_second, args.run, args.model, args.stride),
            read_seconds=0.0,
        )  # fmt: skip
    tell(found, args.cores)
    return DONE


def tell(found: Cost, cores: int) -> None:
    """The three tables' rows for this job."""
    say(f"{found.groups} groups, {found.windows:,} windows; a task takes up to {found.task_hours * 60:.1f} min")
    say(f"{'':10} {'hours':>10} {'core-hours':>12}")
    for name, hours, core in (
        ("prepare", found.prepare_hours, found.prepare_core_hours),
        ("predict", found.predict_hours, found.predict_core_hours), ("all", found.hours, found.core_hours),
    ):  # fmt: skip
        say(f"{name:10} {hours:10.2f} {core:12.1f}")
    gain = found.core_hours / max(found.hours, 1e-12)
    say(f"on {cores} cores: speed-up {gain:.0f}, efficiency {found.efficiency:.2f}")


def _patches(given: list[str]) -> list[int]:
    counts = []
    for path in store_paths(given)[0]:
        with Store(path) as store:
            counts.append(store.meta.patches)
    return counts


def _window_seconds(rate: float | None, run: Path | None, model: str | None, stride: int) -> float:
    if rate is not None:
        if not rate > 0:
            raise UsageError(f"--windows-per-second is {rate}, expected more than 0")
        return 1 / rate
    if run is not None:
        lines = [json.loads(line) for path in run.glob("logs/items-*.jsonl") for line in path.read_text().splitlines()]
        if not lines:
            raise DataError(run, "has no log of items", "run it first")
        return float(sum(line["seconds"] for line in lines) / sum(line["windows"] for line in lines))
    if model is None:
        raise UsageError("the cost needs --windows-per-second, --run or --model")
    return _timed(model, stride)


def _timed(model: str, stride: int) -> float:
    from medmpi import kernels as K
    from medmpi.slide.model import load_classifier
    from medmpi.slide.windows import choose

    K.set_threads(1)
    classifier = load_classifier(model)
    count = max(1, 224 // stride)
    engine, why = choose(classifier.graph, classifier.window, stride, (count, count), channels=classifier.channels)
    sides = [(count - 1) * stride + side for side in classifier.window]
    tile = classifier.prepare(np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8))
    list(engine.run([(tile, (count, count))], stride))  # the first call packs weights
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 3 or rounds < 2:
        list(engine.run([(tile, (count, count))], stride))
        rounds += 1
    seconds = (time.perf_counter() - start) / (rounds * count * count)
    say(f"{why}; {1 / seconds:.1f} windows/s on one core")
    return seconds
