"""``nifti:DIR``: slices of volumes with label volumes, for segmentation; a volume (a patient) is in one split only.

DIR holds ``images`` (or ``imagesTr``) beside ``labels`` (or ``labelsTr``), as the Medical Segmentation Decathlon does,
or these within ``train``, ``val`` and ``test``. Slices are laid on a canvas of the largest slice, a multiple of 16,
so that a millimetre stays one. Options: ``axis=axial|coronal|sagittal``, ``empty=drop`` (leave out training slices
without any label), ``masks=binary``, ``window``, ``nan``, ``bad=skip``,
``groups=FILE.csv`` where a patient has several volumes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from .dataset import SPLITS, Task
from .entries import Entry, FileReader, check_headers, check_masks, make_part
from .errors import DataError
from .groups import assign_groups
from .nifti import AXES, SUFFIXES, stem
from .opened import Opened, Part
from .partition import Ids
from .reading import Reading, levels_of
from .source import Images, Source, Targets

_LAYOUT = "expected images/ beside labels/ with .nii or .nii.gz files of the same names"
_CHOICES = {"axis": tuple(AXES), "empty": ("keep", "drop"), "masks": ("classes", "binary"), "bad": ("error", "skip")}
_FREE = ("window", "nan", "groups")


class Chosen:
    """Some samples of another source."""

    def __init__(self, source: Source, positions: Ids) -> None:
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        return self.source.read(self.positions[positions])


def open_nifti(path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    """Find, check and decode the volumes. DataError for what cannot be used."""
    for key, value in options.items():
        if key not in (*_CHOICES, *_FREE) or value not in _CHOICES.get(key, (value,)):
            allowed = ", ".join(f"{k}={'|'.join(v)}" for k, v in _CHOICES.items())
            raise ValueError(f"nifti: option {key}={value}, expected {allowed}, window=, nan= or groups=")
    if task == "classification":
        raise DataError(path, "volumes with label volumes are for segmentation", "leave out the task")
    root = Path(path)
    if not root.is_dir():
        raise DataError(path, "no such folder", "check the path after nifti:")
    reading = Reading(levels_of("nifti", options), AXES[options.get("axis", "axial")])
    reader = FileReader(
        path, image_size, reading, skip_bad=options.get("bad") == "skip", masks=options.get("masks"), pad=True
    )
    folders = {s: root / s for s in SPLITS if (root / s).is_dir()} or {"train": root}
    if "train" not in folders:
        raise DataError(path, f"it has {', '.join(folders)} but no train", _LAYOUT)
    try:
        listed = {s: assign_groups(root, options.get("groups"), _pairs(folder)) for s, folder in folders.items()}
    except OSError as error:
        raise DataError(error.filename or path, error.strerror or error, "check that it can be read") from None
    entries, size = check_headers(reader, listed, _LAYOUT)
    entries, classes = check_masks(reader, entries)
    parts = {s: make_part(reader, entries[s], size, segmentation=True) for s in SPLITS if s in entries}
    if options.get("empty") == "drop":
        parts["train"] = _with_labels(path, parts["train"])
    skipped = tuple(reader.skipped)
    return Opened(path, "segmentation", classes, reader.channels, size, parts, skipped, reader.reading)


def _pairs(folder: Path) -> list[Entry]:
    places = next(
        (
            (folder / images, folder / labels)
            for images, labels in (("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks"))
            if (folder / images).is_dir() and (folder / labels).is_dir()
        ),
        None,
    )
    if places is None:
        raise DataError(folder, "it has no images/ beside labels/", _LAYOUT)
    images, labels = (
        {stem(f): f for f in sorted(p.iterdir()) if f.name.lower().endswith(SUFFIXES) and not f.name.startswith(".")}
        for p in places
    )
    entries = []
    for name, image in images.items():
        # nnU-Net adds a channel number to images.
        label = labels.pop(name, None) or labels.pop(name.removesuffix("_0000"), None)
        if label is None:
            raise DataError(image, f"it has no label volume in {places[1]}", "expected a file of the same name")
        entries.append(Entry(image, mask=label))
    if labels:
        raise DataError(next(iter(labels.values())), "a label volume without an image", f"expected one in {places[0]}")
    if not entries:
        raise DataError(places[0], "it has no .nii or .nii.gz file", _LAYOUT)
    return entries


def _with_labels(path: str, part: Part) -> Part:
    """The slices that have a label."""
    everything = np.arange(len(part), dtype=np.int64)
    keep = np.concatenate([part.source.read(everything[i : i + 64])[1].any(axis=(1, 2)) for i in everything[::64]])
    if not keep.any():
        raise DataError(path, "no training slice has a label", "leave out empty=drop")
    kept = everything[keep]
    groups = None if part.groups is None else tuple(part.groups[i] for i in kept)
    return replace(part, source=Chosen(part.source, kept), groups=groups)
