"""``medmpi slide prepare``."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medmpi.data import DataError
from medmpi.slide.commands.options import add_prepare_options, parser, positive, slide_paths
from medmpi.slide.files import write_json
from medmpi.slide.launch import BAD_DATA, DONE, Progress, on_root, say, usage, world_if_launched
from medmpi.slide.prepare import NoTissue, PrepareOptions, bytes_report, prepare
from medmpi.slide.store import Store

# A damaged slide has a store: patches that see what cannot be read will be among the failed.
STATES = ("done", "kept", "skipped", "damaged", "failed")


def main(argv: Sequence[str]) -> int:
    """Makes the stores of slides, each whole or not at all; 3 where one failed or is damaged."""
    p = parser("prepare", "Tissue mask, patch grid and store of slides. What is there already is kept.")
    p.add_argument("slides", nargs="+", help="slides, or folders of them")
    p.add_argument("--out", required=True, type=Path, help="folder of the stores")
    p.add_argument("--pixels", choices=("webp", "none"), default="webp", help="store pixels, or coordinates alone")
    p.add_argument("--task", type=int, help="array task: only the slide of this number, from 0")
    p.add_argument("--threads", type=positive, help="cores to use")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    add_prepare_options(p)
    args = p.parse_args(argv)
    with usage():
        options = options_from(args, args.pixels)
    world = world_if_launched()
    slides = on_root(world, lambda: slide_paths(args.slides))
    if args.task is not None:
        if not 0 <= args.task < len(slides):
            raise DataError(args.out, f"there is no slide {args.task}", f"there are {len(slides)}")
        slides = [slides[args.task]]
    if args.threads:
        from medmpi import kernels as K

        K.set_threads(args.threads)
    on_root(world, lambda: args.out.mkdir(parents=True, exist_ok=True))
    return prepare_all(slides, args.out, options, world, quiet=args.quiet)


def options_from(args: Namespace, pixels: str) -> PrepareOptions:
    """The options of the command line."""
    return PrepareOptions(
        mpp=args.mpp, level=args.level, patch=args.patch, context=args.context, tissue=args.tissue,
        least_tissue=args.least_tissue, group_size=args.group_size, memory=args.memory, pixels=pixels,
    )  # fmt: skip


def prepare_all(slides: list[Path], out: Path, options: PrepareOptions, world: Any, *, quiet: bool = False) -> int:
    """Prepares slides on this process or all ranks, notes those that fail or have no tissue, returns the exit code."""
    progress = Progress("slides", quiet=quiet or (world is not None and world.rank > 0))

    outcomes: list[tuple[str, str]] = []

    def within(share: float) -> None:
        progress(len(outcomes) + share, len(slides), f" ({100 * share:.0f} % of the next)")

    def one(slide: Path) -> tuple[str, str]:
        return _one(slide, out, options, within if world is None or world.size == 1 else lambda share: None)

    if world is None:
        for slide in slides:
            outcomes.append(one(slide))
            _tell(outcomes[-1], quiet)
            progress(len(outcomes), len(slides))
    else:
        from medmpi import parallel

        def arrived(outcome: Any) -> None:
            outcomes.append(outcome.value or ("failed", outcome.error))
            _tell(outcomes[-1], quiet)
            progress(len(outcomes), len(slides))

        parallel.collect(world, one, slides, on_result=arrived)
    progress.close()
    code = DONE
    if world is None or world.rank == 0:
        counts = {state: sum(s == state for s, _ in outcomes) for state in STATES}
        say(f"{out}: " + ", ".join(f"{n} {state}" for state, n in counts.items()), quiet=quiet)
        code = BAD_DATA if counts["failed"] or counts["damaged"] or len(outcomes) < len(slides) else DONE
    return int(world.broadcast(code)) if world is not None else code


def _one(slide: Path, out: Path, options: PrepareOptions, progress: Callable[[float], None]) -> tuple[str, str]:
    place = hashlib.blake2b(str(slide.resolve()).encode(), digest_size=4).hexdigest()  # stems collide
    records = {state: out / f"{slide.stem}-{place}.{state}.json" for state in ("skipped", "failed")}
    try:
        path, meta, seconds = prepare(slide, out, options, progress=progress)
    except NoTissue as error:
        write_json(records["skipped"], {"slide": str(slide), "why": str(error.cause)})
        records["failed"].unlink(missing_ok=True)
        return "skipped", str(error)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # one bad slide among many must not end the job
        why = str(error) if isinstance(error, DataError) else f"{slide}: {type(error).__name__}: {error}"
        write_json(records["failed"], {"slide": str(slide), "why": why})
        return "failed", why
    for record in records.values():
        record.unlink(missing_ok=True)
    with Store(path) as store:
        bad = len(store.bad)
    if bad:
        return (
            "damaged",
            f"{slide}: {bad} cells of {meta.patch}x{meta.patch} pixels cannot be read; the others are stored",
        )
    if "skipped" in seconds:
        return "kept", f"{path} is there already"
    spent = " ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    return "done", f"{path.name}: {bytes_report(path, meta, options.patch_bytes)}; {spent}"


def _tell(outcome: tuple[str, str], quiet: bool) -> None:
    state, text = outcome
    if state in ("failed", "damaged"):
        print(f"medmpi: {state}: {text}", file=sys.stderr, flush=True)
    else:
        say(f"{state}: {text}", quiet=quiet)
