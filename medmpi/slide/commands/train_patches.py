"""``medmpi slide train-patches``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.files import replacing
from medmpi.slide.commands.options import parser, positive, slide_paths
from medmpi.slide.files import write_json
from medmpi.slide.launch import BAD_DATA, DONE, Progress, UsageError, say, usage
from medmpi.slide.reader import slide_id
from medmpi.slide.sampling import CLASSES, NORMAL, TUMOUR, Sampled, SampleOptions, sample_slide
from medmpi.slide.truth import find_truth, open_truth

T = TypeVar("T")
SPLITS = ("train", "val", "test")


def main(argv: Sequence[str]) -> int:
    """Writes an npz that ``medmpi train --data npz:FILE`` reads; 3 where slides failed or gave fewer than asked for."""
    p = parser("train-patches", "Tumour and normal patches from annotated slides, split by slide, as an npz.")
    p.add_argument("slides", nargs="+", help="slides, or folders of them")
    p.add_argument("--truth", type=Path, required=True, help="folder of polygons or mask TIFFs, by slide's name")
    p.add_argument("--normal-slides", default="*normal*", help="names of slides without tumour")
    p.add_argument("--out", type=Path, required=True, help="npz file; beside it .json says where each patch is from")
    p.add_argument("--tumour", type=int, default=100, help="tumour patches a slide")
    p.add_argument("--normal", type=int, default=100, help="normal patches a slide")
    p.add_argument("--patch", type=positive, default=256)
    p.add_argument("--crop", type=positive, default=224)
    p.add_argument("--least-tumour", type=float, default=0.5, help="share of a tumour patch that is annotated")
    p.add_argument("--noise", type=int, default=20, help="most that is added to hue, saturation and value")
    p.add_argument("--copies", type=positive, default=1, help="crops of each patch, each with noise of its own")
    p.add_argument("--stain", choices=("none", "reinhard", "macenko", "vahadane"), default="none")
    p.add_argument("--mpp", type=float, help="microns a pixel (none: level 0)")
    p.add_argument("--level", type=int, help="level")
    p.add_argument("--val", type=float, default=0.15, help="share of the slides for validation")
    p.add_argument("--test", type=float, default=0.15, help="share of the slides for the test")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=positive, help="slides at a time (none: all cores)")
    args = p.parse_args(argv)
    with usage():
        options = SampleOptions(
            tumour=args.tumour, normal=args.normal, patch=args.patch, crop=args.crop, least_tumour=args.least_tumour,
            noise=args.noise, copies=args.copies, stain=args.stain, mpp=args.mpp, level=args.level, seed=args.seed,
        )  # fmt: skip
    if args.out.suffix != ".npz" or not 0 <= args.val + args.test < 1:
        raise UsageError("expected --out FILE.npz and shares of validation and test below 1 together")
    slides = slide_paths(args.slides)
    splits = split_slides([slide_id(path) for path in slides], args.val, args.test, args.seed)
    found: dict[str, list[Sampled]] = {split: [] for split in SPLITS}
    record: list[dict[str, Any]] = []
    problems = []
    progress = Progress("slides")

    def attempt(path: Path) -> Sampled | DataError:
        try:
            return _one(path, args.truth, args.normal_slides, options)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(args.threads or K.threads())  # what is drawn from a slide depends on no other one
    try:
        outcomes = list(_told(pool.map(attempt, slides), progress, len(slides)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the slides that nobody has begun
    for path, split, sampled in zip(slides, splits, outcomes, strict=True):
        if isinstance(sampled, DataError):
            problems.append(str(sampled))
            record.append({"slide": path.name, "split": split, "error": str(sampled)})
            continue
        numbers = {name: sampled.found(label, options.copies) for label, name in enumerate(CLASSES)}
        for label, name in ((NORMAL, "normal"), (TUMOUR, "tumour")):
            if numbers[name] < sampled.wanted[label]:
                problems.append(f"{path.name}: {numbers[name]} of {sampled.wanted[label]} {name} patches were found")
        record.append({"slide": path.name, "split": split, **numbers, "places": sampled.places.tolist()})
        found[split].append(sampled)
    progress.close()
    used = [sampled for parts in found.values() for sampled in parts if len(sampled.labels)]
    if not used:
        raise DataError(args.truth, "; ".join(problems) or "no patches were found", "check slides and annotations")
    _write(args.out, found)
    write_json(args.out.with_suffix(".json"), {"options": vars(options), "slides": record})
    for split in SPLITS:
        labels = np.concatenate([s.labels for s in found[split]] or [np.empty(0, np.uint8)])
        say(f"{split:5}: {len(found[split])} slides, " + ", ".join(
            f"{int((labels == k).sum())} {name}" for k, name in enumerate(CLASSES)
        ))  # fmt: skip
    say(f"{args.out}; train with: medmpi train --data npz:{args.out} --model inception_v1 --augment flip,rotate90")
    for problem in problems:
        print(f"medmpi: {problem}", file=sys.stderr)
    return BAD_DATA if problems else DONE


def _told(outcomes: Iterable[T], progress: Progress, total: int) -> Iterator[T]:
    """The outcomes as they come, each of them told."""
    for i, outcome in enumerate(outcomes):
        progress(i + 1, total)
        yield outcome


def split_slides(identities: Sequence[str], val: float, test: float, seed: int) -> list[str]:
    """A split for each slide, by its content: all its patches and all its copies are on one side."""
    unique = sorted(set(identities), key=lambda i: hashlib.blake2b(f"{seed}/{i}".encode()).digest())
    n_test, n_val = round(test * len(unique)), round(val * len(unique))
    place = {identity: i for i, identity in enumerate(unique)}
    return ["test" if place[i] < n_test else "val" if place[i] < n_test + n_val else "train" for i in identities]


def _one(path: Path, truth: Path, normal: str, options: SampleOptions) -> Sampled:
    annotated = find_truth(truth, [path.stem], but=path)
    if annotated is None and not fnmatch(path.stem.lower(), normal.lower()):
        raise DataError(path, f"has no annotation in {truth}", f"add one, or name normal slides ({normal!r})")
    return sample_slide(path, None if annotated is None else open_truth(annotated), options)


def _write(path: Path, found: dict[str, list[Sampled]]) -> None:
    arrays: dict[str, NDArray[Any]] = {"class_names": np.array(CLASSES)}
    for split, parts in found.items():
        if parts:
            arrays[f"{split}_images"] = np.concatenate([part.images for part in parts])
            arrays[f"{split}_labels"] = np.concatenate([part.labels for part in parts])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
