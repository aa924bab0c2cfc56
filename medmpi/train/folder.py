"""The run folder: chosen and tested for writing before any work is done, never shared by two runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medmpi.train.failure import ERROR, USAGE, Failure
from medmpi.train.options import Options

_SIGNS = ("config.toml", "metrics.csv", "checkpoints")


def default_name(options: Options) -> str:
    """'resnet18-phantom', 'unet-npz': the model and the kind of data, or --name."""
    if options.name is not None:
        return options.name
    kind, _, where = options.data.partition(":")
    stem = Path(where).name.split(".")[0] if where else ""
    return "-".join(part for part in (options.model, kind, stem) if part)


def holds_a_run(folder: Path) -> bool:
    """Whether the folder has traces of a run."""
    return any((folder / sign).exists() for sign in _SIGNS)


def _has_begun(folder: Path) -> bool:
    """Whether a run got further than reading its data; one that did not may be started again in the same folder."""
    files = any((folder / sign).is_file() for sign in _SIGNS)
    return files or any((folder / "checkpoints").glob("*.safetensors"))


def choose(options: Options) -> Path:
    """The folder of this run, made and tested for writing.

    Failure: --out holds a run and --resume was not given (exit 2); the folder cannot be written (exit 1).
    """
    folder = locate(options)
    make_writable(folder)
    return folder


def locate(options: Options) -> Path:
    """The folder of this run, untouched; Failure where it holds a run and --resume was not given."""
    if options.out is not None:
        folder = Path(options.out)
        if _has_begun(folder) and not options.resume:
            raise Failure(f"{folder} holds a run already; add --resume to continue it or give another --out", USAGE)
    else:
        folder = _numbered(Path("runs"), default_name(options), options.resume)
    return folder


def _numbered(parent: Path, name: str, resume: bool) -> Path:
    """runs/NAME if it is free, else runs/NAME-2 and so on; the newest one that exists if it shall be resumed."""
    newest, number = None, 1
    candidate = parent / name
    while holds_a_run(candidate):
        newest, number = candidate, number + 1
        candidate = parent / f"{name}-{number}"
    return newest if resume and newest is not None else candidate


def make_writable(folder: Path, parts: Sequence[str] = ("checkpoints",)) -> None:
    """Makes the folder and its parts and writes a test file into each; Failure with the path otherwise."""
    for place in (folder, *(folder / part for part in parts)):
        try:
            place.mkdir(parents=True, exist_ok=True)
            probe = place / f".write-test.{os.getpid()}"
            probe.write_bytes(b"medmpi")
            probe.unlink()
        except OSError as error:
            raise Failure(f"cannot write to the run folder {place}: {error.strerror or error}", ERROR) from None
    for stale in [*folder.glob(".*.tmp*"), *folder.glob("checkpoints/.*.tmp*"), *folder.glob("**/.write-test.*")]:
        stale.unlink(missing_ok=True)
