"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmpi.data import DataError
from medmpi.slide.files import read_json
from medmpi.slide.prepare import GROUP

SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm")


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults."""
    return argparse.ArgumentParser(
        prog=f"medmpi slide {name}", description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def memory(text: str) -> int:
    """Bytes: 4096, 230MiB, 2GiB, 500MB."""
    units = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 1000, "mb": 10**6, "gb": 10**9, "b": 1, "": 1}
    number = text.rstrip("KMGiBkmgb ")
    unit = text[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory such as 230MiB") from None


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def add_prepare_options(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("tissue and patches")
    group.add_argument("--mpp", type=float, help="analyse the level of so many microns a pixel (none: level 0)")
    group.add_argument("--level", type=int, help="analyse this level")
    group.add_argument("--patch", type=positive, default=224, help="side of a patch in pixels")
    group.add_argument("--context", type=int, default=112, help="pixels around a patch that its windows may need")
    group.add_argument(
        "--tissue", choices=("hs", "hsv", "all"), default="hs",
        help="Otsu on hue and saturation, on value too (training slides), or all of the slide",
    )  # fmt: skip
    group.add_argument("--least-tissue", type=float, default=0.0, help="share of a patch that must be tissue")
    group.add_argument("--group-size", type=positive, default=GROUP, help="patches a group, the unit of work")
    group.add_argument(
        "--memory", type=memory, help="instead of --group-size: as many patches as this holds (S4: N_p = floor(M / S))"
    )


def add_score_options(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("scores")
    group.add_argument("--model", required=True, help="run folder or checkpoint of a classifier")
    group.add_argument("--stride", type=positive, default=16, help="pixels between the heatmap's points")
    group.add_argument(
        "--engine", choices=("auto", "windowed", "shared"), default="auto", help="how windows are scored"
    )
    group.add_argument(
        "--stain", choices=("none", "reinhard", "macenko", "vahadane"), default="none", help="stain normalisation"
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out slides that could not be prepared")
    group.add_argument("--retries", type=int, default=1, help="further attempts at an item that failed")
    group.add_argument("--no-tune", dest="tune", action="store_false", help="do not time the convolutions first")


def slide_paths(given: list[str]) -> list[Path]:
    """Slides named, or found in folders by their suffix; DataError where there are none."""
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir() and not list(path.glob("*.dcm")):
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SLIDES)
        else:
            found.append(path)
    if not found:
        raise DataError(", ".join(given), "there are no slides", f"expected files ending with {', '.join(SLIDES)}")
    return found


def store_paths(given: list[str], *, skip_bad: bool = False) -> tuple[list[Path], dict[str, str]]:
    """Stores named or in folders, and the slides that were skipped when the folders were prepared, with why.

    DataError where a slide of a folder failed to be prepared: its scores would be missing without a word. With
    ``skip_bad`` such slides are among the skipped.
    """
    found: list[Path] = []
    skipped: dict[str, str] = {}
    for text in given:
        path = Path(text)
        if not path.is_dir():
            found.append(path)
            continue
        found += sorted(p for p in path.glob("*.h5") if not p.name.startswith("."))
        for record in sorted(path.glob("*.skipped.json")):
            skipped[record.name.removesuffix(".skipped.json")] = read_json(record, "why a slide was skipped")["why"]
        for record in sorted(path.glob("*.failed.json")):
            why = read_json(record, "why a slide failed")["why"]
            if not skip_bad:
                raise DataError(record, f"a slide could not be prepared: {why}", "prepare it again, or --skip-bad")
            skipped[record.name.removesuffix(".failed.json")] = f"failed: {why}"
    if not found and skipped:
        why = "; ".join(f"{name}: {text}" for name, text in skipped.items())
        raise DataError(
            ", ".join(given), f"all slides were skipped ({why})", "name slides with tissue, or --tissue all"
        )
    if not found:
        raise DataError(", ".join(given), "there are no stores", "run 'medmpi slide prepare' first")
    return found, skipped


def heatmap_paths(given: list[str]) -> dict[str, Path]:
    """Slide's name -> heatmap, of files and folders (a run's too); DataError where there are none, or a name twice."""
    found: dict[str, Path] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            folder = path / "heatmaps" if (path / "heatmaps").is_dir() else path
            files = sorted(p for p in folder.glob("*.heatmap.h5") if not p.name.startswith("."))
        else:
            files = [path]
        for file in files:
            name = file.name.removesuffix(".h5").removesuffix(".heatmap")
            if name in found:
                raise DataError(file, f"is of the same slide as {found[name]}", "name one of them")
            found[name] = file
    if not found:
        raise DataError(", ".join(given), "there are no heatmaps", "run 'medmpi slide stitch' first")
    return found
