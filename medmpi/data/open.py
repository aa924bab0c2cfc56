"""``open_dataset``: one spec string to one data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from . import phantom
from .cbis_ddsm import open_cbis_ddsm
from .cifar10 import open_cifar10
from .dataset import SPLITS, Dataset, Task
from .folder import open_folder, open_pairs
from .hdf5_set import open_hdf5
from .nifti_set import open_nifti
from .npz import open_npz
from .opened import Opened, Part, assemble
from .waiting import told_to

Size: TypeAlias = tuple[int, int] | None

_SPECS = "phantom, npz:FILE, hdf5:FILE, cifar10:DIR, folder:DIR, pairs:DIR, nifti:DIR or cbis-ddsm:DIR"


def open_dataset(
    spec: str,
    *,
    task: Task | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """Open the data that ``spec`` names: ``kind``, ``kind:path`` or ``kind:path?option=value,option=value``.

    ``phantom`` or ``phantom:size=64,samples=2000,classes=3,channels=1`` is generated (``samples`` counts the training
    split, the others get a quarter of it each). ``npz:FILE``, ``hdf5:FILE``, ``cifar10:DIR``, ``folder:DIR``,
    ``pairs:DIR``, ``nifti:DIR`` and ``cbis-ddsm:DIR`` are read; their modules list their options.
    ``task`` is found from the data unless given; the phantom has both. ``image_size`` (h, w) resizes every image.
    ``val_fraction`` is cut from training, stratified and by ``seed``, for each split that the files lack.
    ``say`` is told every ten seconds how far a long opening is.

    Raises DataError for files that cannot be used and ValueError for a spec or an argument that makes no sense.
    """
    if task not in (None, "classification", "segmentation"):
        raise ValueError(f"open_dataset: task is {task!r}, expected classification or segmentation")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or min(size) < 1 or max(size) > 65535):
        raise ValueError(f"open_dataset: image_size is {image_size}, expected (h, w) within 1..65535")
    kind, _, rest = spec.partition(":")
    if kind == "phantom":
        opened = _open_phantom(spec, rest, task, size, seed)
    elif kind in _FORMATS:
        path, options = _path_and_options(kind, rest)
        with told_to(say):
            opened = _FORMATS[kind](path, task, options, size)
    else:
        raise ValueError(f"open_dataset: {spec!r} is not a data spec, expected {_SPECS}")
    name = kind if kind == "phantom" else Path(opened.path).stem
    return assemble(opened, name=name, spec=spec, image_size=size, seed=seed, val_fraction=val_fraction)


def _open_phantom(spec: str, rest: str, task: Task | None, size: tuple[int, int] | None, seed: int) -> Opened:
    options = {"size": 32, "samples": 640, "classes": 3, "channels": 1}
    for key, value in _options(spec, rest).items():
        if key not in options or not value.isdecimal():
            raise ValueError(f"phantom: option {key}={value}, expected numbers for {', '.join(options)}")
        options[key] = int(value)
    if options["samples"] < 4 * options["classes"]:
        raise ValueError(f"phantom: {options['samples']} samples, expected 4 or more of each class")
    image_size = size or (options["size"], options["size"])
    classes, channels, parts = options["classes"], options["channels"], {}
    for stream, split in enumerate(SPLITS):
        samples = options["samples"] if split == "train" else options["samples"] // 4
        images, labels, masks = phantom.generate(
            samples, classes=classes, image_size=image_size, channels=channels, seed=seed, stream=stream
        )
        segmentation = task == "segmentation"
        source = phantom.source(images, labels, masks, segmentation=segmentation)
        parts[split] = Part(source, None if segmentation else labels)
    return Opened("phantom", task or "classification", phantom.class_names(classes), channels, image_size, parts)


def _npz(path: str, task: Task | None, options: dict[str, str], _: Size) -> Opened:
    _no_options("npz", options)
    return open_npz(path, task=task)


def _cifar10(path: str, task: Task | None, options: dict[str, str], _: Size) -> Opened:
    _no_options("cifar10", options)
    return open_cifar10(path, task=task)


def _with_options(opener: Callable[..., Opened]) -> Callable[[str, Task | None, dict[str, str], Size], Opened]:
    def call(path: str, task: Task | None, options: dict[str, str], size: Size) -> Opened:
        return opener(path, task=task, options=options, image_size=size)

    return call


_FORMATS: dict[str, Callable[[str, Task | None, dict[str, str], Size], Opened]] = {
    "cifar10": _cifar10,
    "cbis-ddsm": _with_options(open_cbis_ddsm),
    "folder": _with_options(open_folder),
    "hdf5": _with_options(open_hdf5),
    "nifti": _with_options(open_nifti),
    "npz": _npz,
    "pairs": _with_options(open_pairs),
}


def _no_options(kind: str, options: dict[str, str]) -> None:
    if options:
        raise ValueError(f"{kind}: option {next(iter(options))}, expected none")


def _path_and_options(kind: str, rest: str) -> tuple[str, dict[str, str]]:
    """The path with ``~`` expanded; a question mark belongs to the path where a file of that name exists."""
    if not rest:
        raise ValueError(f"open_dataset: {kind}: has no path, expected {kind}:PATH")
    path, mark, options = os.path.expanduser(rest).rpartition("?")
    if not mark or os.path.exists(os.path.expanduser(rest)):
        return os.path.expanduser(rest), {}
    return path, _options(rest, options)


def _options(spec: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not value or key in options:
            raise ValueError(f"open_dataset: option {item!r} of {spec!r}, expected key=value, each once")
        options[key] = value
    return options
