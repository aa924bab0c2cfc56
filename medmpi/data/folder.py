"""``folder:DIR`` and ``pairs:DIR``: images in one folder per class, or images with masks.

Either directly in DIR or within its ``train``, ``val`` and ``test``. Files may be PNG, JPEG, TIFF, BMP, PGM, DICOM,
NIfTI and arrays (npy, npz, HDF5), mixed; every frame of a file and every axial slice of a volume is a sample.
Masks lie in ``masks`` or ``labels`` beside ``images`` under the same names, or (``pairs``) in the same folder with
``_mask``, ``_seg`` or ``_label`` added to the name. Options, after a question mark:

* ``window``, ``bits``, ``nan``: how values become grey levels (``medical.Levels``);
* ``fit=pad``: lay images of several sizes on a black canvas of the largest instead of asking for a size;
* ``bad=skip``: leave out files that cannot be decoded instead of ending;
* ``masks=binary`` (every number above 0 is foreground, as for masks of numbered instances) or ``masks=classes``
  (numbers are classes even beyond 64);
* ``groups=FILE.csv`` (columns file and group: whose each file is), ``groups=parent`` (the folder it is in) or
  ``groups=none``; unless given, DICOM's patient, and the frames of a file stay together. No group is in two splits.

Every file is decoded once when the folder is opened, so that a bad one ends the job before it has begun.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from .dataset import SPLITS, Task
from .entries import Entry, FileReader, check_headers, check_masks, make_part
from .errors import DataError
from .groups import assign_groups
from .opened import Opened, Part
from .readers import SUFFIXES, is_image, name_of
from .reading import EXPECTED, OPTIONS, Reading, levels_of

SPLIT_FOLDERS = {"training": "train", "valid": "val", "validation": "val", **{name: name for name in SPLITS}}
_ADDED = ("_mask", "_seg", "_label")
_LAYOUT = "expected a folder per class, or images/ beside masks/, directly or within train/, val/ and test/"
_PAIRS = (
    "expected images/ beside masks/, or NAME and NAME_mask in one folder, directly or within train/, val/ and test/"
)
_CHOICES = {"bad": ("error", "skip"), "masks": ("classes", "binary"), "fit": ("stretch", "pad")}


def open_folder(path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    """Find, check and decode the images of a folder. Files of other kinds beside them are not looked at."""
    return _guarded(path, "folder", options, image_size, task)


def open_pairs(path: str, *, task: Task | None, options: dict[str, str], image_size: tuple[int, int] | None) -> Opened:
    """Images with masks, for segmentation."""
    if task == "classification":
        raise DataError(path, "pairs of images and masks are for segmentation", "leave out the task, or use folder:")
    return _guarded(path, "pairs", options, image_size, "segmentation")


def _guarded(
    path: str, kind: str, options: dict[str, str], image_size: tuple[int, int] | None, task: Task | None
) -> Opened:
    reader = _reader(kind, path, options, image_size)
    if not Path(path).is_dir():
        raise DataError(path, "no such folder", f"check the path after {kind}:")
    try:
        return _open(path, kind, task, options.get("groups"), reader)
    except OSError as error:
        raise DataError(error.filename or path, error.strerror or error, "check that it can be read") from error


def _open(path: str, kind: str, task: Task | None, groups: str | None, reader: FileReader) -> Opened:
    root = Path(path)
    layout = _PAIRS if kind == "pairs" else _LAYOUT
    split_folders = {SPLIT_FOLDERS[d.name]: d for d in _subfolders(root) if d.name in SPLIT_FOLDERS} or {"train": root}
    if "train" not in split_folders:
        raise DataError(path, f"it has {', '.join(split_folders)} but no train", layout)
    found: Task = "segmentation" if kind == "pairs" or _masks(split_folders["train"]) else "classification"
    if task is not None and task != found:
        raise DataError(path, f"it is laid out for {found}", layout)
    classes: tuple[str, ...] = ()
    if found == "classification":
        classes = tuple(d.name for d in _subfolders(split_folders["train"]))
        if len(classes) < 2:
            raise DataError(
                split_folders["train"], f"it has {len(classes)} class folders, 2 or more are needed", layout
            )
        listed = {s: _by_class(d, classes) for s, d in split_folders.items()}
    else:
        listed = {s: _with_masks(d, flat=kind == "pairs") for s, d in split_folders.items()}
    entries, size = check_headers(reader, {s: assign_groups(root, groups, e) for s, e in listed.items()}, layout)
    if groups == "none":
        entries = {s: [replace(e, group=None) for e in listed] for s, listed in entries.items()}
    if found == "segmentation":
        entries, classes = check_masks(reader, entries)
    parts = {}
    for split in SPLITS:
        if split in entries:
            parts[split] = make_part(reader, entries[split], size, segmentation=found == "segmentation")
    if found == "classification":
        _check_counts(path, parts, classes)
    return Opened(path, found, classes, reader.channels, size, parts, tuple(reader.skipped), reader.reading)


def _reader(kind: str, path: str, options: dict[str, str], image_size: tuple[int, int] | None) -> FileReader:
    for key, value in options.items():
        if key not in (*_CHOICES, *OPTIONS, "groups") or value not in _CHOICES.get(key, (value,)):
            raise ValueError(
                f"{kind}: option {key}={value}, expected {EXPECTED}, bad=error|skip, masks=classes|binary, "
                "fit=stretch|pad or groups=FILE.csv|parent|none"
            )
    return FileReader(
        path,
        image_size,
        Reading(levels_of(kind, options)),
        skip_bad=options.get("bad") == "skip",
        masks=options.get("masks"),
        pad=options.get("fit") == "pad",
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted((d for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")), key=lambda d: d.name)


def _masks(folder: Path) -> Path | None:
    """The folder of masks beside ``images``, if these two are there."""
    if (folder / "images").is_dir():
        for name in ("masks", "labels"):
            if (folder / name).is_dir():
                return folder / name
    return None


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder in the order of their paths, the same on every machine."""
    files = (Path(base) / name for base, _, names in os.walk(folder, onerror=_raise) for name in names)
    return sorted((f for f in files if is_image(f)), key=lambda f: f.relative_to(folder).as_posix())


def outside(files: list[Path], folder: Path) -> list[Path]:
    """Those that do not lie in the folder, by whatever links."""
    resolved = folder.resolve()
    inside = {parent: parent.resolve().is_relative_to(resolved) for parent in {f.parent for f in files}}
    return [f for f in files if not inside[f.parent]]


def _raise(error: OSError) -> None:
    """os.walk leaves out what it may not read, unless told to fail."""
    raise error


def _by_class(folder: Path, classes: tuple[str, ...]) -> list[Entry]:
    entries = []
    for sub in _subfolders(folder):
        if sub.name not in classes:
            raise DataError(sub, "training has no class of this name", f"expected {', '.join(classes)}")
        files = images_below(sub)
        if not files and SPLIT_FOLDERS.get(folder.name, "train") == "train":
            raise DataError(sub, f"the class has no picture ({', '.join(SUFFIXES)})", "add some or remove the folder")
        entries += [Entry(file, classes.index(sub.name)) for file in files]
    return entries


def _with_masks(folder: Path, *, flat: bool) -> list[Entry]:
    """Pairs by path and name without suffix (a mask may add ``_mask``), never by position in a listing."""
    masks_folder = _masks(folder)
    if masks_folder is None and not flat:
        raise DataError(folder, "it has no images/ beside masks/", _LAYOUT)
    if masks_folder is None:
        everything = _by_name(folder)
        masks = {name: file for name, file in everything.items() if name.endswith(_ADDED)}
        images = {name: file for name, file in everything.items() if name not in masks}
        masks_folder = images_folder = folder
        if not masks:
            raise DataError(folder, "it has neither images/ beside masks/ nor files named *_mask", _PAIRS)
    else:
        images_folder = folder / "images"
        images, masks = _by_name(images_folder), _by_name(masks_folder)
    entries = []
    for name, image in images.items():
        mask = next((masks.pop(name + end) for end in ("", *_ADDED) if name + end in masks), None)
        if mask is None:
            raise DataError(image, f"it has no mask in {masks_folder}", "expected a file of the same name")
        entries.append(Entry(image, mask=mask))
    if masks:
        raise DataError(next(iter(masks.values())), "a mask without a picture", f"expected one in {images_folder}")
    if not entries:
        raise DataError(images_folder, f"it has no picture ({', '.join(SUFFIXES)})", "add some")
    return entries


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in images_below(folder):
        name = file.relative_to(folder).with_name(name_of(file)).as_posix()
        if name in files:
            raise DataError(file, f"{files[name].name} has the same name", "rename one: pairs are found by name")
        files[name] = file
    return files


def _check_counts(path: str, parts: dict[str, Part], classes: tuple[str, ...]) -> None:
    labels = parts["train"].labels
    assert labels is not None
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0):
        raise DataError(path, f"class {classes[k]} has no readable training picture", "add some or remove the folder")
