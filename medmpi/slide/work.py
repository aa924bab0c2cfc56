"""Does the items of a run: one at a time, retried, noted; the same for every executor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from medmpi.data import DataError
from medmpi.slide.claims import LEASE, Claims
from medmpi.slide.ledger import Ledger
from medmpi.slide.manifest import Item, Manifest, store_digest
from medmpi.slide.model import load_classifier, set_algorithms
from medmpi.slide.predict import Predictor
from medmpi.slide.reader import Slide
from medmpi.slide.stain import transform_for
from medmpi.slide.store import Store, open_source

DONE, FAILED, BUSY = "done", "failed", "busy"


@dataclass(frozen=True)
class Report:
    """What became of an item in this run: done now or before, failed, or in another process's hands."""

    index: int
    state: str
    windows: int = 0
    seconds: float = 0.0
    wait: float = 0.0
    error: str = ""


class Worker:
    """Keeps model, store and slide open between items; everything is opened by the process that uses it."""

    def __init__(
        self, run: Path, manifest: Manifest, *, retries: int = 1, lease: float = LEASE,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self._manifest, self._retries, self._progress = manifest, retries, progress
        self.ledger = Ledger(run, manifest)
        self._claims = Claims(run / "claims", lease=lease)
        self._predictors: dict[tuple[int, str], Predictor] = {}
        self._classifier = load_classifier(manifest.model)
        if self._classifier.digest != manifest.model_digest:
            raise DataError(manifest.model, "has changed since the job was made", "take a new run folder")
        set_algorithms(self._classifier, manifest.algorithms)
        self._open: tuple[str, Store, Slide | None] | None = None

    def __call__(self, item: Item) -> Report:
        """Does an item unless it is done; every failure is noted and reported, none is raised."""
        name = item.key.replace("/", "-")
        if self.ledger.done(item):
            self._claims.forget(name)
            return Report(item.index, DONE)
        with self._claims.hold(name) as mine:
            if not mine:
                return Report(item.index, BUSY)
            if self.ledger.done(item):  # while we looked
                return Report(item.index, DONE)
            return self._attempt(item)

    def _attempt(self, item: Item) -> Report:
        start, why, scores = time.perf_counter(), "", None
        for _ in range(self._retries + 1):
            try:
                store, slide = self._opened(item)
                scores = self._predictor(item, store).group(store, item.group, slide, progress=self._progress)
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:  # readers, codecs and file systems raise many kinds
                why = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
                self._close()
                continue
            if not scores.bad:
                self.ledger.finish(item, scores)
                seconds, wait = scores.seconds["total"], scores.seconds["wait"]
                windows = len(scores.scores)
                self.ledger.log(
                    {"item": item.key, "seconds": seconds, "wait": wait, "windows": windows,
                     "patches": len(scores.blocks)}
                )  # fmt: skip
                return Report(item.index, DONE, windows, seconds, wait)
            why = f"{len(scores.bad)} patches cannot be read: {scores.bad[0][2]}"
            self._close()
        self.ledger.fail(item, why, scores)
        return Report(item.index, FAILED, seconds=time.perf_counter() - start, error=why)

    def _opened(self, item: Item) -> tuple[Store, Slide | None]:
        if self._open is None or self._open[0] != item.slide.store:
            self._close()
            store = Store(Path(item.slide.store))
            try:
                if store_digest(store) != item.slide.store_digest:
                    raise DataError(item.slide.store, "has changed since the job was made", "take a new run folder")
                folder = self._manifest.slides_folder
                slide = open_source(store, Path(folder) if folder else None) if store.meta.pixels == "none" else None
            except BaseException:
                store.close()
                raise
            self._open = item.slide.store, store, slide
        return self._open[1], self._open[2]

    def _predictor(self, item: Item, store: Store) -> Predictor:
        """For a store's patch size and a slide's stains; the last one is kept."""
        key, m = (store.meta.patch, item.slide.name if item.slide.stain else ""), self._manifest
        if key not in self._predictors:
            self._predictors = {
                key: Predictor(
                    self._classifier, m.stride, patch=store.meta.patch, engine=m.engine,
                    transform=transform_for(item.slide.stain),
                )
            }  # fmt: skip
        return self._predictors[key]

    def _close(self) -> None:
        if self._open is not None:
            _, store, slide = self._open
            self._open = None
            with contextlib.suppress(Exception):
                store.close()
            if slide is not None:
                with contextlib.suppress(Exception):
                    slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def serially(worker: Worker, items: Iterable[Item], report: Callable[[Report], None]) -> list[Report]:
    """One process, item by item."""
    found = []
    for item in items:
        found.append(worker(item))
        report(found[-1])
    return found
