"""What a whole-slide job is: one frozen list of items (slide, group) that every executor works through.

``manifest.json`` of a run folder is written once. Items are numbered slide by slide, group by group; slides are known
by their content, not by their names. Whatever changes a score is in the manifest, and its digest in every result, so
results of another job are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medmpi import __version__
from medmpi.data import DataError
from medmpi.slide.files import read_json, write_json
from medmpi.slide.store import Store

NAME, SCHEMA, VERSION = "manifest.json", "medmpi-slide-job", 1


@dataclass(frozen=True)
class SlideEntry:
    """A slide of the job: its store and how many groups that has."""

    name: str
    store: str
    slide_id: str
    store_digest: str
    groups: int
    patches: int
    stain: dict[str, Any] | None = None


@dataclass(frozen=True)
class Item:
    """A unit of work."""

    index: int
    slide: SlideEntry
    group: int

    @property
    def key(self) -> str:
        """For people and file names."""
        return f"{self.slide.name}/g{self.group:05d}"


@dataclass(frozen=True)
class Manifest:
    """A frozen job. ``skipped`` maps slides that are no part of it to why."""

    model: str
    model_digest: str
    classes: tuple[str, ...]
    window: tuple[int, int]
    stride: int
    engine: str
    stain: str
    slides: tuple[SlideEntry, ...]
    algorithms: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    slides_folder: str | None = None

    @property
    def digest(self) -> str:
        """Of everything that scores depend on; where files lie is no part of it."""
        content = asdict(self)
        for name in ("model", "skipped", "slides_folder"):
            del content[name]
        for entry in content["slides"]:
            del entry["store"]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def items(self) -> list[Item]:
        """All items in order."""
        found: list[Item] = []
        for slide in self.slides:
            found += [Item(len(found) + g, slide, g) for g in range(slide.groups)]
        return found


def store_digest(store: Store) -> str:
    """Of what a store is of and how: not of its path."""
    content = asdict(store.meta)
    for name in ("slide", "slide_bytes", "reader"):
        del content[name]
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8)
    digest.update(store.patches.tobytes())
    digest.update(repr(sorted(store.bad)).encode())
    return digest.hexdigest()


def slide_entries(
    paths: Sequence[Path], *, window: int = 0, stain: Callable[[Store], dict[str, Any] | None] = lambda store: None
) -> tuple[SlideEntry, ...]:
    """The stores as entries, in order of name; DataError where two are of the same slide.

    Windows of ``window`` pixels must find their context. ``stain(store)`` gives the fit of a slide's stains, or why
    there is none.
    """
    found: dict[str, SlideEntry] = {}
    for path in sorted(paths):
        with Store(path) as store:
            if window // 2 > store.meta.context:
                raise DataError(
                    path, f"has {store.meta.context} pixels of context, windows of {window} need {window // 2}",
                    f"prepare it with --context {window // 2}",
                )  # fmt: skip
            entry = SlideEntry(
                path.stem, str(path.resolve()), store.meta.slide_id, store_digest(store), store.meta.groups,
                store.meta.patches, stain(store),
            )  # fmt: skip
        same = next((e for e in found.values() if e.slide_id == entry.slide_id), None)
        if same is not None:
            raise DataError(path, f"is of the same slide as {same.store}", "name one of them")
        if entry.name in found:
            raise DataError(path, f"has the name of {found[entry.name].store}", "name one of them")
        found[entry.name] = entry
    return tuple(found.values())


def freeze(run: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of a new run folder, or checks that the folder's own is of the same job."""
    path = run / NAME
    if path.exists():
        old = load(run)
        if old.digest != manifest.digest:
            changed = [
                name for name, value in asdict(manifest).items()
                if name not in ("model", "skipped", "slides_folder") and asdict(old)[name] != value
            ]  # fmt: skip
            raise DataError(run, f"holds another job ({', '.join(changed)} differ)", "take a new run folder")
        return old
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, "schema_version": VERSION, "medmpi": __version__, **asdict(manifest)})
    return manifest


def load(run: Path) -> Manifest:
    """The manifest of a run folder; DataError where it has none, or another schema."""
    content: dict[str, Any] = read_json(run / NAME, "the folder of a whole-slide job ('medmpi slide run' makes it)")
    try:
        if (content.pop("schema"), content.pop("schema_version")) != (SCHEMA, VERSION):
            raise ValueError(f"it is no {SCHEMA} of version {VERSION}")
        content.pop("medmpi")
        slides = tuple(SlideEntry(**entry) for entry in content.pop("slides"))
        for name in ("classes", "window"):
            content[name] = tuple(content[name])
        return Manifest(slides=slides, **content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(run / NAME, f"cannot be read: {error}", "take a new run folder") from error
