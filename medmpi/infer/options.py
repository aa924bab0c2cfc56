"""The settings of ``medmpi infer``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmpi.train.config import ConfigError, SettingsParser

_EPILOG = """\
Model, preprocessing and class names come from the run folder. Results: results.csv and results.jsonl in --out, masks
beside them in masks/, latencies in summary.json. Started again, the command does what is missing. Images that cannot be
used are listed with their error, and the command ends with exit code 3.

  mpirun -n 2 medmpi infer runs/mine scans/ --out found
  medmpi infer runs/mine --watch inbox/ --out found          every image that appears in a folder, until stopped
  medmpi infer runs/mine --listen 11112 --out found          every image that is sent by DICOM C-STORE
  medmpi infer runs/mine --measure                           latencies of the network, and the rate it can bear"""
RULES = ("youden", "accuracy", "sensitivity", "specificity")
MASKS = ("png", "nifti", "seg")


@dataclass(frozen=True)
class Options:
    """What is read, with which model, and where results go."""

    run: str
    inputs: tuple[str, ...] = ()
    out: str | None = None
    checkpoint: str = "best"
    masks: tuple[str, ...] = ()
    temperature: str = "auto"
    threshold: str | None = None
    watch: str | None = None
    listen: int | None = None
    bind: str = "127.0.0.1"
    ae_title: str = "MEDMPI"
    idle: float = 0.0
    keep: bool = True
    measure: bool = False
    limit_ms: float = 40.0
    images: int = 200
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    timeout: float = 300.0
    quiet: bool = False


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of all flags."""
    parser = SettingsParser(
        prog=prog,
        description="Classify or segment DICOM, NIfTI, PNG, JPEG, TIFF, BMP and PGM images with a trained model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder of a training, or a .safetensors file of one")
    add("inputs", nargs="*", metavar="INPUT", help="files and folders")
    add("--out", metavar="DIR", help="folder of the results")
    add("--checkpoint", choices=("best", "last"), default="best", help="of the run folder (best)")
    add(
        "--masks", default="auto", metavar="LIST",
        help="of segmentation: png, nifti (the input's affine), seg (of DICOM); auto is nifti for NIfTI, else png",
    )  # fmt: skip
    add(
        "--temperature", default="auto", metavar="T",
        help="divide logits by it: auto is what the run found on validation, 1 leaves them as they are (auto)",
    )  # fmt: skip
    add(
        "--threshold", metavar="P",
        help="with two classes: call the second one from this probability on; or youden, accuracy, sensitivity or "
        "specificity: the run's operating points (0.5)",
    )  # fmt: skip
    add("--watch", metavar="DIR", help="a folder to which images are added")
    add(
        "--listen", type=int, metavar="PORT",
        help="answer DICOM C-STORE (and C-ECHO) on this port; 0 takes a free one and keeps it over restarts",
    )  # fmt: skip
    add("--bind", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1: this machine only)")
    add("--ae-title", default="MEDMPI", metavar="NAME", help="of the listener (MEDMPI)")
    add("--idle", type=float, default=0.0, metavar="S", help="end after so many seconds without an image (0: never)")
    add("--no-keep", action="store_true", help="delete received images once their results are written")
    add("--measure", action="store_true", help="no images: measure latencies")
    add("--limit-ms", type=float, default=40.0, metavar="MS", help="--measure: latency that 99 %% shall keep (40)")
    add("--images", type=int, default=200, metavar="N", help="--measure: images per rate (200)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (cpu)")
    add(
        "--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="--device cuda: of its products (fp32); sums are float32",
    )  # fmt: skip
    add("--threads", type=int, default=None, metavar="N", help="OpenMP threads per rank (cores / ranks of the node)")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds a rank may keep the others waiting (300)")
    add("--quiet", action="store_true", help="print warnings and the result only")
    return parser


def parse(argv: Sequence[str], prog: str) -> Options:
    """Options from the command line; ConfigError with one line otherwise."""
    given = build_parser(prog).parse_args(list(argv))
    if sum((bool(given.inputs), given.watch is not None, given.listen is not None, given.measure)) != 1:
        raise ConfigError("expected either INPUT files or folders, or one of --watch, --listen and --measure")
    if given.out is None and not given.measure:
        raise ConfigError("--out is missing, expected the folder of the results")
    masks = () if given.masks == "auto" else tuple(given.masks.split(","))
    if any(name not in MASKS for name in masks):
        raise ConfigError(f"--masks is {given.masks}, expected a list of {', '.join(MASKS)}, or auto")
    if given.temperature != "auto" and not _number(given.temperature) > 0:
        raise ConfigError(f"--temperature is {given.temperature}, expected auto or a number above 0")
    if given.threshold is not None and given.threshold not in RULES and not 0 < _number(given.threshold) < 1:
        raise ConfigError(f"--threshold is {given.threshold}, expected {', '.join(RULES)} or a number between 0 and 1")
    if given.listen is not None and not 0 <= given.listen <= 65535:
        raise ConfigError(f"--listen is {given.listen}, expected a port 0..65535")
    if not 1 <= len(given.ae_title) <= 16 or not given.ae_title.isascii():
        raise ConfigError(f"--ae-title is {given.ae_title!r}, expected 1 to 16 ASCII characters")
    for name, low in (("idle", 0.0), ("limit_ms", 1e-9), ("timeout", 1e-9), ("images", 10), ("threads", 1)):
        value = getattr(given, name)
        if value is not None and not value >= low:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected {low:g} or more")
    if given.precision != "fp32" and given.device == "cpu":
        raise ConfigError(f"--precision {given.precision} needs --device cuda: the CPU computes in fp32")
    return Options(
        run=given.run, inputs=tuple(given.inputs), out=given.out, checkpoint=given.checkpoint, masks=masks,
        temperature=given.temperature, threshold=given.threshold,
        watch=given.watch, listen=given.listen, bind=given.bind, ae_title=given.ae_title, idle=given.idle,
        keep=not given.no_keep, measure=given.measure, limit_ms=given.limit_ms, images=given.images,
        device=given.device, precision=given.precision, threads=given.threads, timeout=given.timeout, quiet=given.quiet,
    )  # fmt: skip


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
