"""``cbis-ddsm:DIR``: the Curated Breast Imaging Subset of DDSM (Lee et al., Scientific Data 4, 2017).

DIR holds the case descriptions (``*_case_description_train_set.csv`` and ``..._test_set.csv``, of masses and
calcifications) anywhere below it, and the images as The Cancer Imaging Archive serves them or converted to PNG or JPEG
with the same folder names. A row is an abnormality with its full mammogram, a crop and a mask of its region.

Options:

* ``images=crop`` (the region that the radiologists cut out, the default), ``full`` or, for segmentation, ``full`` with
  the union of its masks;
* ``classes=2`` (benign, malignant; the default), ``3`` (benign without callback as one of its own, as the CSVs label)
  or ``5``: normal and benign or malignant calcification or mass, the reading of "50,000 images, 5 classes". The
  subset has no normal mammograms: normal samples are pieces of breast without any abnormality, one for each crop;
* ``type=all``, ``mass`` or ``calc``;
* ``overlap=error``: patients who are in training and in test end the job (some are, with masses on one side and
  calcifications on the other); ``test`` and ``train`` keep them on that side alone; ``bad=error|skip``; ``window``.

Validation is cut from training by patient.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .dataset import Task
from .entries import Entry, FileReader, by_threads, check_headers, make_part
from .errors import DataError
from .groups import check_groups
from .mammogram import Patches, RegionMasks
from .opened import Opened, Part
from .readers import is_image, read_header
from .reading import Reading, levels_of

_CHOICES = {
    "images": ("crop", "full"),
    "classes": ("2", "3", "5"),
    "type": ("all", "mass", "calc"),
    "overlap": ("error", "test", "train"),
    "bad": ("error", "skip"),
}
_NAMES = {
    "2": ("benign", "malignant"),
    "3": ("benign", "benign_without_callback", "malignant"),
    "5": ("normal", "benign_calcification", "benign_mass", "malignant_calcification", "malignant_mass"),
}
_DEFAULT_SIZE = {"crop": (224, 224), "full": (512, 512)}
_LAYOUT = "expected mass_case_description_train_set.csv and its like, and the images in folders of their names"


@dataclass(frozen=True)
class Case:
    """One row: an abnormality."""

    patient: str
    split: str
    kind: str
    pathology: str
    full: Path
    crop: Path
    mask: Path


def open_cbis_ddsm(
    path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None
) -> Opened:
    """Find the cases and their files, and check and decode them. DataError for what cannot be used."""
    for key, value in options.items():
        if key not in (*_CHOICES, "window", "bits", "nan") or value not in _CHOICES.get(key, (value,)):
            allowed = ", ".join(f"{k}={'|'.join(v)}" for k, v in _CHOICES.items())
            raise ValueError(f"cbis-ddsm: option {key}={value}, expected {allowed} or window=")
    images = options.get("images", "full" if task == "segmentation" else "crop")
    names = _NAMES[options.get("classes", "2")]
    if task == "segmentation" and images != "full":
        raise ValueError("cbis-ddsm: images=crop with segmentation, expected images=full")
    if len(names) == 5 and images != "crop":
        raise ValueError("cbis-ddsm: classes=5 needs images=crop: one mammogram holds several of these classes")
    reader = FileReader(
        path,
        image_size or _DEFAULT_SIZE[images],
        Reading(levels_of("cbis-ddsm", options)),
        skip_bad=options.get("bad") == "skip",
    )
    cases = _cases(Path(path), options.get("type", "all"), reader)
    cases = _one_side(path, cases, options.get("overlap", "error"))
    segmentation = task == "segmentation"
    entries = {
        split: _entries([c for c in cases if c.split == split], names, images, segmentation=segmentation)
        for split in ("train", "test")
        if any(c.split == split for c in cases)
    }
    if "train" not in entries:
        raise DataError(path, "no case of the training CSVs was found", _LAYOUT)
    kept, size = check_headers(reader, entries, _LAYOUT)
    parts: dict[str, Part] = {}
    for split, listed in kept.items():
        if segmentation:
            parts[split] = RegionMasks(reader, listed, cases, size).part()
        else:
            parts[split] = make_part(reader, listed, size, segmentation=False)
            if len(names) == 5:
                parts[split] = Patches(reader, [c for c in cases if c.split == split], size).added_to(parts[split])
    classes = ("background", "abnormality") if segmentation else names
    if not segmentation:
        labels = parts["train"].labels
        assert labels is not None
        for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0):
            raise DataError(path, f"class {classes[k]} has no training case", "leave out type=, or give fewer classes")
    found: Task = "segmentation" if segmentation else "classification"
    return Opened(path, found, classes, reader.channels, size, parts, tuple(reader.skipped), reader.reading)


def _cases(root: Path, kind: str, reader: FileReader) -> list[Case]:
    """All rows of all CSVs, with their files."""
    if not root.is_dir():
        raise DataError(root, "no such folder", "check the path after cbis-ddsm:")
    tables = sorted(root.rglob("*case_description*.csv"))
    tables = [t for t in tables if kind == "all" or t.name.lower().startswith(kind)]
    if not tables:
        raise DataError(root, "it has no *case_description*.csv" + ("" if kind == "all" else f" of {kind}"), _LAYOUT)
    index = _index(root)
    rows = [(table, row) for table in tables for row in _rows(table)]
    found = by_threads(lambda item: _case(*item, index), rows)
    reader.survivors(rows, found)
    cases = [c for c in found if isinstance(c, Case)]
    if not cases:
        raise DataError(root, f"none of {len(rows)} cases has its files", _LAYOUT)
    return cases


def _rows(table: Path) -> list[dict[str, str]]:
    """The rows with plain column names: "image file path" may hold line ends and quotes, names differ between files."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(table, f"it cannot be read ({error})", "fetch it again") from None
    plain = [{str(k).strip().lower().replace("_", " "): str(v or "").strip() for k, v in r.items() if k} for r in rows]
    needed = ("patient id", "pathology", "image file path", "cropped image file path", "roi mask file path")
    lacking = [name for name in needed if not plain or name not in plain[0]]
    if lacking:
        raise DataError(table, f"it has no column {lacking[0]}", "fetch it again")
    return plain


def _case(table: Path, row: dict[str, str], index: dict[str, list[Path]]) -> Case:
    pathology = row["pathology"].upper()
    if pathology not in ("BENIGN", "BENIGN_WITHOUT_CALLBACK", "MALIGNANT"):
        raise DataError(table, f"pathology {row['pathology']!r} of {row['image file path']}", "correct the row")
    split = "test" if "test" in table.name.lower() else "train"
    kind = "calc" if "calc" in (row.get("abnormality type", "") or table.name).lower() else "mass"
    full = _find(table, row["image file path"], index)
    parts = [*_find(table, row["cropped image file path"], index), *_find(table, row["roi mask file path"], index)]
    if not full:
        raise DataError(table, f"the file of {row['image file path']!r} is missing", "fetch it, or give bad=skip")
    crop, mask = _crop_and_mask(table, row, full[0], list(dict.fromkeys(parts)))
    return Case(row["patient id"], split, kind, pathology, full[0], crop, mask)


def _index(root: Path) -> dict[str, list[Path]]:
    """Image files by the names of the folders they lie in."""
    index: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.is_file() and is_image(file):
            for folder in file.relative_to(root).parts[:-1]:
                index.setdefault(folder, []).append(file)
    return index


def _find(table: Path, text: str, index: dict[str, list[Path]]) -> list[Path]:
    """The files that a path of the CSV means.

    The archive's downloads keep the first folder of it (``Mass-Training_P_00001_LEFT_CC``), some converted copies the
    folder of its series; the rest of the path has changed with every release.
    """
    folders = [part for part in text.strip().strip('"').split("/")[:-1] if part]
    within = set(index.get(folders[-1], [])) if folders else set()  # the series
    if within:
        return sorted(within)
    return index.get(folders[0], []) if folders else []


def _crop_and_mask(table: Path, row: dict[str, str], full: Path, files: list[Path]) -> tuple[Path, Path]:
    """Which is which: the columns are swapped in many rows, but a mask is as large as its mammogram."""
    size = read_header(full).image_size
    masks = [f for f in files if f != full and read_header(f).image_size == size]
    crops = [f for f in files if f != full and f not in masks]
    if not masks or not crops:
        lacking = "mask" if not masks else "crop"
        where = row["roi mask file path"] if lacking == "mask" else row["cropped image file path"]
        raise DataError(table, f"the {lacking} of {where!r} is missing", "fetch it, or give bad=skip")
    return crops[0], masks[0]


def _one_side(path: str, cases: list[Case], overlap: str) -> list[Case]:
    """The guard, or what was asked for instead."""
    sides = {s: sorted({c.patient for c in cases if c.split == s}) for s in ("train", "test")}
    if overlap == "error":
        try:
            check_groups(path, sides)
        except DataError as error:
            raise DataError(path, error.cause, f"give ?overlap=test or type=mass|calc; {error.advice}") from None
        return cases
    shared = set(sides["train"]) & set(sides["test"])
    return [c for c in cases if c.patient not in shared or c.split == overlap]


def label_of(case: Case, names: tuple[str, ...]) -> int:
    """The class of a case in one of the three readings."""
    malignant = case.pathology == "MALIGNANT"
    if len(names) == 2:
        return int(malignant)
    if len(names) == 3:
        return names.index(case.pathology.lower())
    kind = "calcification" if case.kind == "calc" else "mass"
    return names.index(f"{'malignant' if malignant else 'benign'}_{kind}")


def _entries(cases: list[Case], names: tuple[str, ...], images: str, *, segmentation: bool) -> list[Entry]:
    if images == "crop":
        return [Entry(c.crop, label_of(c, names), group=c.patient) for c in cases]
    worst: dict[Path, Entry] = {}
    for case in cases:
        label = 0 if segmentation else label_of(case, names)
        known = worst.get(case.full)
        # A mammogram with several abnormalities has the label of the worst.
        worst[case.full] = (
            Entry(case.full, label, group=case.patient)
            if known is None
            else replace(known, label=max(known.label, label))
        )
    return list(worst.values())
