"""A whole-slide job from its options to its exit code, on one process or on MPI ranks that pull the items."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi.data import DataError
from medmpi.slide import manifest as manifests
from medmpi.slide.launch import BAD_DATA, DONE, REQUEUE, S4_RATE, Progress, clock, say
from medmpi.slide.ledger import Ledger, Status
from medmpi.slide.manifest import Item, Manifest
from medmpi.slide.model import load_classifier, tuned
from medmpi.slide.predict import Predictor
from medmpi.slide.stain import StainError, fit, sample
from medmpi.slide.store import Store, open_source
from medmpi.slide.work import BUSY, FAILED, Report, Worker, serially
from medmpi.slide.work import DONE as ITEM_DONE

if TYPE_CHECKING:
    from medmpi.parallel import World


def make(
    run: Path, stores: Sequence[Path], model: str, *, stride: int, engine: str = "auto", stain: str = "none",
    tune: bool = True, slides_folder: Path | None = None, skipped: dict[str, str] | None = None, quiet: bool = True,
) -> Manifest:  # fmt: skip
    """Makes a run folder's manifest, or checks it against the one that is there; says which engine will do it.

    NotShareable where ``engine="shared"`` is asked for and would not be exact.
    """
    old = manifests.load(run) if (run / manifests.NAME).exists() else None
    classifier = load_classifier(model)
    say(Predictor(classifier, stride, engine=engine).why, quiet=quiet)
    if old is not None:
        algorithms = old.algorithms  # timing again might choose others
    else:
        algorithms = tuned(classifier) if tune else {}

    def stains(store: Store) -> dict[str, Any] | None:
        if stain == "none":
            return None
        slide = open_source(store, slides_folder) if store.meta.pixels == "none" else None
        try:
            return fit(stain, sample(store, slide), store.meta.slide).to_json()
        except StainError as error:
            return {"error": str(error.cause), "slide": store.meta.slide}
        finally:
            if slide is not None:
                slide.close()

    return manifests.freeze(
        run,
        Manifest(
            model=classifier.path, model_digest=classifier.digest, classes=classifier.columns,
            window=classifier.window, stride=stride, engine=engine, stain=stain,
            slides=manifests.slide_entries(stores, window=max(classifier.window), stain=stains),
            algorithms=algorithms, skipped=skipped or {},
            slides_folder=None if slides_folder is None else str(slides_folder.resolve()),
        ),
    )  # fmt: skip


def execute(
    run: Path, *, world: World | None = None, items: Sequence[Item] | None = None, retries: int = 1,
    quiet: bool = False, lease: float | None = None,
) -> int:  # fmt: skip
    """Does what is missing of a run's items (all of them where None) and returns the exit code.

    0 when every item is done; 3 when some failed (they are listed, and only they run again next time); 85 when some are
    left because a signal asked to stop or another process is at them.
    """
    manifest = manifests.load(run)
    ledger = Ledger(run, manifest)
    todo = list(manifest.items() if items is None else items)
    root = world is None or world.rank == 0
    options: dict[str, Any] = {"retries": retries}
    if lease is not None:
        options["lease"] = lease
    started = time.monotonic()
    if root:
        before = ledger.status(todo)
        say(f"{run}: {before.line()}; stride {manifest.stride}, model {manifest.model_digest}", quiet=quiet)
    progress = Progress("items", quiet=quiet or not root)
    reports: list[Report] = []

    def within(done: int, total: int) -> None:
        progress(len(reports) + done / total, len(todo))

    def note(report: Report) -> None:
        if report.state == FAILED:
            print(f"medmpi: failed: {by_index[report.index].key}: {report.error}", file=sys.stderr, flush=True)
        progress(len(reports), len(todo))

    by_index = {item.index: item for item in todo}
    with Worker(run, manifest, progress=within if world is None else None, **options) as worker:
        if world is None:

            def one(report: Report) -> None:
                reports.append(report)
                note(report)

            serially(worker, todo, one)
        else:
            from medmpi import parallel

            def arrived(outcome: Any) -> None:
                if outcome.value is not None:
                    reports.append(outcome.value)
                    note(outcome.value)

            found = parallel.collect(world, worker, todo, attempts=2, on_result=arrived)
            if found is not None:  # an exception that no item should raise: the item stays open
                for item, outcome in zip(todo, found, strict=True):
                    if outcome is not None and outcome.error is not None:
                        ledger.fail(item, outcome.error.strip().splitlines()[-1])
    progress.close()
    code = _finish(ledger, todo, reports, world, time.monotonic() - started, quiet) if root else DONE
    return int(world.broadcast(code)) if world is not None else code


def _finish(
    ledger: Ledger, todo: Sequence[Item], reports: list[Report], world: World | None, seconds: float, quiet: bool
) -> int:
    status = ledger.status(todo)
    windows, busy = sum(r.windows for r in reports), sum(r.seconds for r in reports if r.state == ITEM_DONE)
    if windows:
        from medmpi import kernels as K

        cores = K.threads() * (1 if world is None else world.size)
        wait = sum(r.wait for r in reports)
        rate = windows / seconds
        say(
            f"{windows} windows in {clock(seconds)} on {cores} cores: {rate:.1f} windows/s,"
            f" {rate / cores:.1f} a core (S4: {S4_RATE}); waited for pixels {100 * wait / max(busy, 1e-9):.1f} %",
            quiet=quiet,
        )
    return tell(ledger, status, {r.index for r in reports if r.state == BUSY}, quiet=quiet)


def tell(ledger: Ledger, status: Status, busy: set[int], *, quiet: bool = False) -> int:
    """Prints what became of the items and returns the exit code."""
    say(status.line(), quiet=quiet and status.complete)
    for item in status.failed:
        record = ledger.failure(item)
        print(f"  failed: {item.key} ({record.get('attempts')} times): {record.get('error')}", file=sys.stderr)
    for item in status.open[:20]:
        print(f"  {'in other hands' if item.index in busy else 'open'}: {item.key}", file=sys.stderr)
    if len(status.open) > 20:
        print(f"  and {len(status.open) - 20} more open items", file=sys.stderr)
    for name, why in status.skipped.items():
        say(f"  skipped slide: {name}: {why}", quiet=quiet)
    return BAD_DATA if status.failed else REQUEUE if status.open else DONE


def array_items(run: Path, listing: Path, task: int, per_task: int) -> list[Item]:
    """The items of one array task: ``per_task`` consecutive lines of a list of item numbers."""
    items = manifests.load(run).items()
    try:
        numbers = [int(line) for line in listing.read_text().split()]
    except (OSError, ValueError) as error:
        raise DataError(listing, error, "expected the list that 'medmpi slide submit' wrote") from error
    if not 0 <= task * per_task < len(numbers):
        raise DataError(listing, f"has {len(numbers)} items, task {task} of {per_task} each is beyond them", "")
    return [items[i] for i in numbers[task * per_task : (task + 1) * per_task]]
