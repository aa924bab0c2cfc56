"""The settings of ``medmpi prepare``."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medmpi.train.config import ConfigError, SettingsParser

_MOST_PIXELS = 1 << 26  # of a result: as many as are read
_STEPS = """\
Steps, in this order: levels of --window; --denoise; --crop; --contrast; --image-size; --normalise. Files that cannot be
used are listed in bad.csv and the command ends with exit code 3. Started again, it goes on where it was stopped.
With --shard k/n each of n array tasks (no MPI needed) does its part; started once more without --shard, the command
checks that all is there and writes the manifest."""


@dataclass(frozen=True)
class Options:
    """What is done to each image; ``identity`` says whether two runs do the same."""

    inputs: tuple[str, ...]
    out: str
    format: str = "png"
    bits: int = 8
    window: str = "auto"
    nan: str = "error"
    denoise: tuple[tuple[str, float], ...] = ()
    contrast: tuple[tuple[str, float], ...] = ()
    crop: str = "none"
    image_size: tuple[int, int] | None = None
    fit: str = "stretch"
    normalise: str = "none"
    labels: str = "auto"
    masks: str = "classes"
    shard_images: int = 256
    previews: int = 8
    shard: tuple[int, int] | None = None
    threads: int | None = None
    timeout: float = 300.0
    quiet: bool = False

    def identity(self) -> dict[str, Any]:
        """The settings that the outputs depend on."""
        others = ("out", "previews", "shard", "threads", "timeout", "quiet")
        return {k: v for k, v in json.loads(json.dumps(asdict(self))).items() if k not in others}

    def digest(self) -> str:
        """A short name of ``identity``."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of all flags."""
    parser = SettingsParser(
        prog=prog,
        description="Prepare medical images: DICOM, NIfTI, PNG, JPEG, TIFF, BMP, PGM to PNG or HDF5, over all ranks.",
        epilog=_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files and folders")
    add("--out", required=True, metavar="DIR", help="folder of the results")
    add("--format", choices=("png", "hdf5"), default="png", help="PNG files in the inputs' folders, or shards (png)")
    add("--bits", type=int, choices=(8, 16), default=8, help="of the results (8)")
    add("--window", default="auto", metavar="W", help="values to levels: auto (the file's own), full, bits or C/W")
    add("--nan", choices=("error", "fill"), default="error", help="pixels that are NaN: an error, or the lowest value")
    add("--denoise", default="none", metavar="LIST", help="gaussian:SIGMA (S0 eq. 2), median:SIZE, or both")
    add("--contrast", default="none", metavar="LIST", help="clahe[:LIMIT] (2), gamma:G, or both")
    add("--crop", default="none", metavar="WHAT", help="breast (its bounding box), or HxW from the middle")
    add("--image-size", default=None, metavar="N", help="one number, or height,width")
    add(
        "--fit", choices=("stretch", "pad"), default="stretch", help="to the size: stretch, or keep shape and add black"
    )
    add(
        "--normalise", choices=("none", "image", "dataset"), default="none",
        help="(x - mean) / std by image or all images (S0 eq. 1); -3..3 become the levels; std 0 gives the middle",
    )  # fmt: skip
    add("--labels", default="auto", metavar="HOW", help="of HDF5: folder (the class folder), none, or auto")
    add("--masks", choices=("classes", "binary"), default="classes", help="numbers of masks as they are, or 0 and 1")
    add("--shard-images", type=int, default=256, metavar="N", help="input files of an HDF5 shard (256)")
    add("--previews", type=int, default=8, metavar="N", help="pictures of before and after (8)")
    add("--shard", default=None, metavar="k/n", help="do part k of n only (k from 0), for array jobs")
    add("--threads", type=int, default=None, metavar="N", help="OpenMP threads per rank (cores / ranks of the node)")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds a rank may keep the others waiting (300)")
    add("--quiet", action="store_true", help="print warnings and the result only")
    return parser


def parse(argv: Sequence[str], prog: str) -> Options:
    """Options from the command line; ConfigError with one line otherwise."""
    given = build_parser(prog).parse_args(list(argv))
    for name in ("previews",):
        if getattr(given, name) < 0:
            raise ConfigError(f"--{name} is {getattr(given, name)}, expected 0 or more")
    for name in ("shard_images", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")
    if given.labels not in ("auto", "folder", "none"):
        raise ConfigError(f"--labels is {given.labels}, expected auto, folder or none")
    if not given.timeout > 0:
        raise ConfigError(f"--timeout is {given.timeout}, expected more than 0")
    from medmpi.data.medical import parse_window

    try:
        parse_window(given.window)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    return Options(
        inputs=tuple(given.inputs),
        out=given.out,
        format=given.format,
        bits=given.bits,
        window=given.window,
        nan=given.nan,
        denoise=_steps("denoise", given.denoise, {"gaussian": None, "median": 3.0}),
        contrast=_steps("contrast", given.contrast, {"clahe": 2.0, "gamma": None}),
        crop=_crop(given.crop),
        image_size=_size(given.image_size),
        fit=given.fit,
        normalise=given.normalise,
        labels=given.labels,
        masks=given.masks,
        shard_images=given.shard_images,
        previews=given.previews,
        shard=_part(given.shard),
        threads=given.threads,
        timeout=given.timeout,
        quiet=given.quiet,
    )


def _steps(flag: str, text: str, known: dict[str, float | None]) -> tuple[tuple[str, float], ...]:
    if text == "none":
        return ()
    steps = []
    for item in text.split(","):
        name, _, number = item.partition(":")
        if name not in known:
            raise ConfigError(f"--{flag} is {text}, expected a list of {', '.join(known)}, or none")
        try:
            value = known[name] if not number else float(number)
        except ValueError:
            value = math.nan
        if value is None or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"--{flag} {item}: expected {name}:NUMBER with a number above 0")
        if name == "median" and (value % 2 != 1 or value > 255):
            raise ConfigError(f"--{flag} {item}: expected an odd whole number up to 255")
        steps.append((name, value))
    return tuple(steps)


def crop_size(text: str) -> tuple[int, int] | None:
    """HxW as two numbers; None for the names of crops."""
    h, x, w = text.lower().partition("x")
    return (int(h), int(w)) if x and h.isdecimal() and w.isdecimal() else None


def _crop(text: str) -> str:
    size = crop_size(text)
    if text not in ("none", "breast") and (size is None or min(size) < 1):
        raise ConfigError(f"--crop is {text}, expected breast, HEIGHTxWIDTH or none")
    return text


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) > 2 or not all(p.isdecimal() and 1 <= int(p) <= 65535 for p in parts):
        raise ConfigError(f"--image-size is {text}, expected one number or height,width")
    h, w = int(parts[0]), int(parts[-1])
    if h * w > _MOST_PIXELS:
        raise ConfigError(f"--image-size is {text}, {h * w:,} pixels, expected at most {_MOST_PIXELS:,}")
    return h, w


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, slash, n = text.partition("/")
    if not slash or not k.isdecimal() or not n.isdecimal() or not int(k) < int(n):
        raise ConfigError(f"--shard is {text}, expected k/n with k from 0 to n-1")
    return int(k), int(n)
