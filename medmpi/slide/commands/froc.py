"""``medmpi slide froc``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from medmpi.data import DataError
from medmpi.files import replacing
from medmpi.slide.classify import at_stride
from medmpi.slide.commands.options import heatmap_paths, parser
from medmpi.slide.detections import Detection, from_heatmap, read_csv
from medmpi.slide.froc import BASE_MPP, LEVEL, RATES, Froc, Regions, evaluation_regions, froc, hits
from medmpi.slide.heatmap import load_heatmap
from medmpi.slide.launch import DONE, UsageError, say, usage
from medmpi.slide.truth import find_truth, mask_shape, read_annotation, read_mask

# S4, table V: stride -> sensitivity at RATES, score.
S4_TABLE = {
    16: (0.45, 0.541, 0.712, 0.80, 0.821, 0.838, 0.694), 64: (0.358, 0.528, 0.681, 0.729, 0.795, 0.817, 0.651),
    128: (0.306, 0.406, 0.572, 0.672, 0.769, 0.817, 0.59), 224: (0.236, 0.371, 0.524, 0.624, 0.721, 0.808, 0.547),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Prints the sensitivities of each set of detections as S4's table V, and writes curve and table."""
    p = parser("froc", "Lesion-level FROC by CAMELYON16's rules, from detections or, stride by stride, from heatmaps.")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--detections", type=Path, help="folder of CSV files (score,x,y in level-0 pixels), one a slide"
    )
    source.add_argument("--heatmaps", nargs="+", help="heatmaps, or folders of them, to detect in")
    p.add_argument(
        "--truth", required=True, type=Path, help="folder of annotations: ASAP XML, JSON, GeoJSON, mask TIFF"
    )
    p.add_argument(
        "--normal", default="*normal*", help="names of slides without lesions; others must have an annotation"
    )
    p.add_argument(
        "--strides", type=int, nargs="+", help="strides to compare, multiples of the heatmaps' (none: theirs)"
    )
    p.add_argument("--radius", type=float, default=300.0, help="of non-maximum suppression, level-0 pixels")
    p.add_argument("--threshold", type=float, default=0.1, help="least score of a detection in a heatmap")
    p.add_argument("--mpp", type=float, default=BASE_MPP, help="microns a level-0 pixel")
    p.add_argument("--official", action="store_true", help="as the challenge's code: without the smallest threshold")
    p.add_argument("--out", type=Path, help="folder for froc.csv (the table), curve-*.csv and froc.png")
    args = p.parse_args(argv)
    if args.detections is not None:
        found = {path.stem: read_csv(path) for path in sorted(args.detections.glob("*.csv"))}
        if not found:
            raise DataError(args.detections, "has no CSV files", "run 'medmpi slide detect' first")
        sets = {"detections": found}
    else:
        sets = _detect(args.heatmaps, args.strides, args.radius, args.threshold)
    regions = {name: _regions(args.truth, name, args.normal, args.mpp) for name in next(iter(sets.values()))}
    _check_all_are_there(args.truth, regions, args.normal)
    results = {}
    for label, found in sets.items():
        with usage():
            results[label] = froc([hits(found[name], regions[name]) for name in found], official=args.official)
    _tell(results, regions)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        _write(args.out, results)
    return DONE


def _detect(
    given: list[str], strides: list[int] | None, radius: float, threshold: float
) -> dict[str, dict[str, list[Detection]]]:
    sets: dict[str, dict[str, list[Detection]]] = {}
    for name, path in heatmap_paths(given).items():
        heat = load_heatmap(path)
        for stride in strides or [heat.meta.stride]:
            with usage():
                found = from_heatmap(at_stride(heat, stride), radius=radius, threshold=threshold)
            sets.setdefault(f"stride {stride}", {})[name] = found
    return sets


def _regions(folder: Path, name: str, normal: str, mpp: float) -> Regions | None:
    path = find_truth(folder, _names(name))
    if path is None:
        if fnmatch(name.lower(), normal.lower()):
            return None
        raise DataError(
            folder, f"has no annotation of {name}", f"add one, or name slides without lesions (--normal {normal!r})"
        )
    factor = 2**LEVEL
    if path.suffix.lower() in (".tif", ".tiff"):
        truth = read_mask(path, mask_shape(path, factor))
    else:
        annotation = read_annotation(path)
        if not annotation.lesions:
            raise DataError(path, "has no polygons of tumour", "leave it out, or name the slide with --normal")
        margin = int(np.ceil(100 / (mpp * factor))) + 2
        high = np.max([polygon.max(0) for polygon in annotation.lesions], axis=0)
        truth = annotation.mask((int(high[1] / factor) + margin, int(high[0] / factor) + margin), factor)
    return evaluation_regions(truth, mpp=mpp)


def _names(name: str) -> list[str]:
    """A slide's name, and without the content's digits that stores add."""
    stem, _, digits = name.rpartition("-")
    return [name, stem] if stem and len(digits) == 16 else [name]


def _check_all_are_there(folder: Path, regions: dict[str, Regions | None], normal: str) -> None:
    """A slide with lesions whose detections are missing would count as if it did not exist."""
    known = {alias for name in regions for alias in _names(name)}
    kinds = (".xml", ".json", ".geojson", ".tif", ".tiff")
    files = [p for p in folder.iterdir() if p.suffix.lower() in kinds]
    missing = sorted(
        p.name for p in files if p.stem not in known and p.stem.removesuffix("_mask").removesuffix("_Mask") not in known
    )
    if missing:
        raise UsageError(
            f"{folder} annotates {len(missing)} slides without detections ({', '.join(missing[:5])}), expected a"
            " CSV for each, an empty one where nothing was detected"
        )


def _tell(results: dict[str, Froc], regions: dict[str, Regions | None]) -> None:
    first = next(iter(results.values()))
    cells = sum(len(r.isolated) for r in regions.values() if r is not None)
    say(f"{first.slides} slides, {first.lesions} lesions ({cells} regions of isolated tumour cells left out)")
    say(f"{'':12} " + " ".join(f"{rate:>6g}" for rate in RATES) + "  score   false positives a slide")
    for label, result in results.items():
        say(f"{label:12} " + " ".join(f"{value:6.3f}" for value in result.at_rates) + f"  {result.score:.3f}")
        stride = int(label.split()[-1]) if label.startswith("stride") else 0
        if stride in S4_TABLE:
            *values, score = S4_TABLE[stride]
            say(f"{'  S4':12} " + " ".join(f"{value:6.3f}" for value in values) + f"  {score:.3f}")


def _write(out: Path, results: dict[str, Froc]) -> None:
    with replacing(out / "froc.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["detections", *(f"sensitivity_at_{rate:g}" for rate in RATES), "score", "lesions", "slides"])
        for label, r in results.items():
            writer.writerow([label, *(f"{v:.6f}" for v in r.at_rates), f"{r.score:.6f}", r.lesions, r.slides])
    for label, r in results.items():
        path = out / f"curve-{label.replace(' ', '-')}.csv"
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["threshold", "false_positives_per_slide", "sensitivity"])
            writer.writerows(zip(r.thresholds, r.false_positives, r.sensitivity, strict=True))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    for label, r in results.items():
        axes.step(r.false_positives, r.sensitivity, where="post", label=f"{label}: {r.score:.3f}")
    axes.set(xlabel="false positives per slide", ylabel="sensitivity", xlim=(0, 8.2), ylim=(0, 1.02))
    axes.legend()
    with replacing(out / "froc.png") as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)
