"""``medmpi slide predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmpi.slide.commands import stitch
from medmpi.slide.commands.options import add_prepare_options, add_score_options, parser, slide_paths, store_paths
from medmpi.slide.commands.prepare import options_from, prepare_all
from medmpi.slide.job import execute, make
from medmpi.slide.launch import on_root, usage, world_if_launched
from medmpi.slide.model import load_classifier


def main(argv: Sequence[str]) -> int:
    """prepare (coordinates), run and stitch in one go; the exit code of the first that fails."""
    p = parser("predict", "Heatmaps of slides from start to end. Start it again to go on where it stopped.")
    p.add_argument("slides", nargs="+", help="slides, or folders of them")
    p.add_argument("--out", required=True, type=Path, help="folder for everything")
    p.add_argument("--pixels", choices=("none", "webp"), default="none", help="store coordinates alone, or pixels too")
    p.add_argument("--tiff", action="store_true", help="overlay as a pyramid, for QuPath")
    p.add_argument("--geojson", action="store_true", help="regions and detections, for QuPath")
    p.add_argument("--viewer", action="store_true", help="a folder with slide and heatmap for the browser")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    add_prepare_options(p)
    add_score_options(p)
    args = p.parse_args(argv)
    world = world_if_launched()
    with usage():
        options = options_from(args, args.pixels)
    on_root(world, lambda: load_classifier(args.model) and None)  # before anything takes long
    stores = args.out / "stores"
    slides = on_root(world, lambda: slide_paths(args.slides))
    on_root(world, lambda: stores.mkdir(parents=True, exist_ok=True))
    prepare_all(slides, stores, options, world, quiet=args.quiet)

    def manifest() -> None:
        found, skipped = store_paths([str(stores)], skip_bad=args.skip_bad)  # refuses slides that failed
        with usage():
            make(
                args.out, found, args.model, stride=args.stride, engine=args.engine, stain=args.stain, tune=args.tune,
                skipped=skipped, quiet=args.quiet,
            )  # fmt: skip

    on_root(world, manifest)
    code = execute(args.out, world=world, retries=args.retries, quiet=args.quiet)
    if code or (world is not None and world.rank > 0):
        return code
    wanted = [f"--{name}" for name in ("tiff", "geojson", "viewer") if getattr(args, name)]
    return stitch.main([str(args.out), *wanted])
