"""``medmpi slide run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmpi.slide.commands.options import add_score_options, parser, positive, store_paths
from medmpi.slide.job import execute, make
from medmpi.slide.launch import on_root, usage, world_if_launched


def main(argv: Sequence[str]) -> int:
    """Scores all groups of all stores; only what is missing is done."""
    p = parser("run", "Scores of prepared slides. Start it again to do what is missing; under mpirun ranks pull items.")
    p.add_argument("stores", nargs="+", help="stores, or folders of them")
    p.add_argument("--out", required=True, type=Path, help="run folder")
    p.add_argument("--slides", type=Path, help="folder of the slides, for stores of coordinates whose slides moved")
    p.add_argument("--only-manifest", action="store_true", help="make the run folder and stop (then: submit)")
    p.add_argument("--threads", type=positive, help="cores a process")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    add_score_options(p)
    args = p.parse_args(argv)
    world = world_if_launched()
    if args.threads:
        from medmpi import kernels as K

        K.set_threads(args.threads)

    def manifest() -> None:
        stores, skipped = store_paths(args.stores, skip_bad=args.skip_bad)
        with usage():
            make(
                args.out, stores, args.model, stride=args.stride, engine=args.engine, stain=args.stain, tune=args.tune,
                slides_folder=args.slides, skipped=skipped, quiet=args.quiet,
            )  # fmt: skip

    on_root(world, manifest)
    if args.only_manifest:
        return 0
    return execute(args.out, world=world, retries=args.retries, quiet=args.quiet)
