"""``medmpi slide detect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmpi.slide.commands.options import heatmap_paths, parser
from medmpi.slide.detections import from_heatmap, write_csv
from medmpi.slide.heatmap import load_heatmap
from medmpi.slide.launch import DONE, say, usage


def main(argv: Sequence[str]) -> int:
    """One CSV a heatmap."""
    p = parser("detect", "Detections from heatmaps by non-maximum suppression: one CSV (score,x,y) a slide.")
    p.add_argument("heatmaps", nargs="+", help="heatmaps, or folders of them")
    p.add_argument("--out", required=True, type=Path, help="folder of the CSV files")
    p.add_argument("--radius", type=float, default=300.0, help="level-0 pixels that a detection clears around it")
    p.add_argument("--threshold", type=float, default=0.5, help="least score")
    p.add_argument("--smooth", type=float, default=0.0, help="level-0 pixels of a Gaussian that goes before")
    p.add_argument("--class", dest="name", help="class to detect (none: the first one kept)")
    args = p.parse_args(argv)
    paths = heatmap_paths(args.heatmaps)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        with usage():
            found = from_heatmap(
                load_heatmap(path), radius=args.radius, threshold=args.threshold, smooth=args.smooth, name=args.name
            )
        write_csv(args.out / f"{name}.csv", found)
        say(f"{args.out / name}.csv: {len(found)} detections")
    return DONE
