"""``medmpi slide classify``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmpi.data import DataError
from medmpi.files import replacing
from medmpi.slide.classify import FEATURES, at_stride, auc_interval, cross_scores, features, forest_scores
from medmpi.slide.commands.options import heatmap_paths, parser
from medmpi.slide.heatmap import load_heatmap
from medmpi.slide.launch import DONE, say, usage

# S4, table IV: stride -> AUC without and with colour normalisation and augmentation.
S4_TABLE = {
    16: ("0.902 (0.844, 0.960)", "0.974 (0.942, 1.000)"), 64: ("0.902 (0.841, 0.964)", "0.991 (0.980, 1.000)"),
    128: ("0.913 (0.857, 0.975)", "0.981 (0.953, 1.000)"), 224: ("0.893 (0.827, 0.960)", "0.975 (0.941, 1.000)"),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Prints the AUC by stride as S4's table IV and writes features and scores."""
    p = parser("classify", "Slide-level scores by a random forest on features of heatmaps.")
    p.add_argument("--heatmaps", nargs="+", required=True, help="heatmaps to score, or folders of them")
    p.add_argument("--labels", type=Path, required=True, help="CSV with columns slide,label (0 or 1) and maybe patient")
    p.add_argument("--train", nargs="+", help="heatmaps to fit on (none: cross-validation, by patient where known)")
    p.add_argument(
        "--strides", type=int, nargs="+", help="strides to compare, multiples of the heatmaps' (none: theirs)"
    )
    p.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    p.add_argument("--trees", type=int, default=500, help="of the forest")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help="folder for features and scores, a CSV a stride")
    args = p.parse_args(argv)
    labels, patients = read_labels(args.labels)
    test, train = heatmap_paths(args.heatmaps), heatmap_paths(args.train) if args.train else None
    if train is not None and (both := sorted(set(test) & set(train))):
        raise DataError(args.labels, f"{both[0]} is both to be fitted on and to be scored", "keep them apart")
    args.out.mkdir(parents=True, exist_ok=True)
    rows, truth = _features(test, labels, args.labels, args.strides)
    fitted = _features(train, labels, args.labels, args.strides) if train is not None else None
    for stride, table in rows.items():
        with usage():
            if fitted is None:
                groups = [patients[_key(n, labels)] for n in test] if patients else None
                scores, importance = cross_scores(
                    table, truth, folds=args.folds, seed=args.seed, trees=args.trees, groups=groups
                )
            else:
                scores, importance = forest_scores(
                    fitted[0][stride], fitted[1], table, seed=args.seed, trees=args.trees
                )
            auc = auc_interval(truth, scores)
        seed_s = f"   S4: {S4_TABLE[stride][0]}, normalised {S4_TABLE[stride][1]}" if stride in S4_TABLE else ""
        say(f"stride {stride:4}: AUC {auc}, {int(truth.sum())} of {len(truth)} slides positive{seed_s}")
        top = np.argsort(-importance)[:3]
        say("             " + ", ".join(f"{FEATURES[i]} {importance[i]:.2f}" for i in top))
        with replacing(args.out / f"slides-{stride}.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["slide", "label", "score", *FEATURES])
            for name, label, score, values in zip(test, truth, scores, table, strict=True):
                writer.writerow([name, int(label), f"{score:.6f}", *(f"{v:.6g}" for v in values)])
    return DONE


def read_labels(path: Path) -> tuple[dict[str, bool], dict[str, str]]:
    """slide -> label, and slide -> patient where the file tells; DataError names the line."""
    labels: dict[str, bool] = {}
    patients: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(csv.DictReader(file), 2):
                slide, label = line.get("slide"), (line.get("label") or "").strip().lower()
                if not slide or label not in ("0", "1", "normal", "tumor", "tumour"):
                    raise DataError(path, f"line {number} is {line}", "expected slide,label with labels 0 or 1")
                if slide in labels:
                    raise DataError(path, f"line {number} names {slide} again", "keep one line a slide")
                labels[slide] = label not in ("0", "normal")
                if line.get("patient"):
                    patients[slide] = str(line["patient"])
    except OSError as error:
        raise DataError(path, error.strerror or error, "expected a CSV of slide,label") from error
    if patients and len(patients) != len(labels):
        raise DataError(path, f"names patients of {len(patients)} of {len(labels)} slides", "name all or none")
    return labels, patients


def _key(name: str, labels: dict[str, bool]) -> str:
    """The name that the labels use: with or without the content's digits."""
    stem, _, digits = name.rpartition("-")
    return name if name in labels or len(digits) != 16 else stem


def _features(
    paths: dict[str, Path], labels: dict[str, bool], source: Path, strides: list[int] | None
) -> tuple[dict[int, NDArray[np.float64]], NDArray[np.bool_]]:
    rows: dict[int, list[NDArray[np.float64]]] = {}
    truth = []
    for name, path in paths.items():
        if _key(name, labels) not in labels:
            raise DataError(source, f"has no label of {name}", "add it")
        truth.append(labels[_key(name, labels)])
        heat = load_heatmap(path)
        for stride in strides or [heat.meta.stride]:
            with usage():
                rows.setdefault(stride, []).append(features(at_stride(heat, stride)))
    return {stride: np.array(values) for stride, values in rows.items()}, np.array(truth)
