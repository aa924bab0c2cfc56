"""``medmpi slide stitch``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from medmpi.data import DataError
from medmpi.slide import geojson
from medmpi.slide import manifest as manifests
from medmpi.slide.commands.options import parser
from medmpi.slide.detections import from_heatmap
from medmpi.slide.heatmap import assemble, load_heatmap, meta_for
from medmpi.slide.launch import BAD_DATA, DONE, Progress, say, usage
from medmpi.slide.ledger import Ledger
from medmpi.slide.manifest import Item
from medmpi.slide.overlay import write_png, write_pyramid
from medmpi.slide.predict import GroupScores
from medmpi.slide.reader import Slide
from medmpi.slide.store import Store, open_source
from medmpi.slide.viewer import write_viewer

_MOST = 1 << 26  # points of a heatmap that pictures are made of


def main(argv: Sequence[str]) -> int:
    """Makes the heatmaps of a run's slides; 3 where one is incomplete: what is missing is listed."""
    p = parser("stitch", "Heatmaps of a finished run, by the coordinates stored with the scores.")
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--partial", action="store_true", help="leave missing patches uncovered instead of refusing")
    p.add_argument("--slides", type=Path, help="folder of the slides, where they moved")
    p.add_argument("--no-png", dest="png", action="store_false", help="no overlay picture")
    p.add_argument("--tiff", action="store_true", help="overlay as a pyramid, for QuPath")
    p.add_argument("--geojson", action="store_true", help="regions and detections, for QuPath")
    p.add_argument("--viewer", action="store_true", help="a folder with slide and heatmap for the browser")
    p.add_argument("--threshold", type=float, default=0.5, help="of regions and detections")
    p.add_argument("--radius", type=float, default=300.0, help="level-0 pixels between detections")
    p.add_argument("--class", dest="name", help="class to show (none: the first one kept)")
    args = p.parse_args(argv)
    manifest = manifests.load(args.run)
    ledger = Ledger(args.run, manifest)
    out = args.run / "heatmaps"
    out.mkdir(exist_ok=True)
    items = manifest.items()
    incomplete = 0
    progress = Progress("groups")
    read = [0]

    def step() -> None:
        read[0] += 1
        progress(read[0], len(items))

    for entry in manifest.slides:
        path = out / f"{entry.name}.heatmap.h5"
        try:
            with Store(Path(entry.store)) as store:
                mine = [item for item in items if item.slide is entry]
                about = meta_for(store, manifest.stride, manifest.classes, manifest.model_digest)
                meta = assemble(path, store, about, _scores(ledger, mine, args.partial), partial=args.partial,
                                progress=step)  # fmt: skip
                slide = _slide(store, args.slides) if args.png or args.tiff or args.viewer else None
        except DataError as error:
            incomplete += 1
            print(f"medmpi: {entry.name}: {error}", file=sys.stderr, flush=True)
            continue
        left = f", {len(meta.missing)} patches missing" if meta.missing else ""
        say(f"{path}{left}")
        try:
            with usage():
                _pictures(path, slide, args)
        finally:
            if slide is not None:
                slide.close()
    progress.close()
    return BAD_DATA if incomplete else DONE


def _scores(ledger: Ledger, items: list[Item], partial: bool) -> Iterator[GroupScores]:
    """The scores of a slide's items; missing ones are named, all of them, unless ``partial``."""
    missing = [item.key for item in items if not ledger.result_path(item).exists()]
    if missing and not partial:
        shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        raise DataError(ledger.run, f"{len(missing)} of {len(items)} groups are missing: {shown}", "run the job again")
    for item in items:
        scores = ledger.load(item, partial=partial)
        if scores is not None:
            yield scores
        elif not partial:
            raise DataError(ledger.result_path(item), "is damaged or of another job", "run the job again")


def _slide(store: Store, folder: Path | None) -> Slide | None:
    try:
        return open_source(store, folder)
    except DataError as error:
        print(f"medmpi: pictures are without the slide: {error}", file=sys.stderr)
        return None


def _pictures(path: Path, slide: Slide | None, args: object) -> None:
    heat = load_heatmap(path, most=_MOST)
    stem = path.name.removesuffix(".heatmap.h5")
    options = vars(args)
    name = options["name"]
    if options["png"]:
        write_png(path.with_name(f"{stem}.overlay.png"), heat, slide, name=name)
    if options["tiff"]:
        write_pyramid(path.with_name(f"{stem}.overlay.tif"), heat, slide, name=name)
    if options["geojson"]:
        found = from_heatmap(heat, radius=options["radius"], threshold=options["threshold"], name=name)
        label = name or heat.meta.classes[0]
        features = [*geojson.regions(heat, options["threshold"], name=name), *geojson.points(found, label)]
        count = geojson.write(path.with_name(f"{stem}.geojson"), features)
        say(f"{stem}.geojson: {count} regions and detections")
    if options["viewer"]:
        if slide is None:
            raise DataError(path, "the viewer needs the slide", "name its folder with --slides")
        say(f"{write_viewer(path.with_name(f'{stem}.viewer'), heat, slide, name=name)}")
