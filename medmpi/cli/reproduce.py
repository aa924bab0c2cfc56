"""``medmpi reproduce RUN``: trains a run folder's run again and says whether the same came out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """0: reproduced; 1: not, or no run; 2: wrong arguments; else the exit code of the training."""
    parser = argparse.ArgumentParser(
        prog="medmpi reproduce",
        description="Trains the run of a run folder again, with its settings, seed and number of ranks, and compares "
        "losses, scores and weights: bit for bit where that is due, else within --tolerance.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="folder of the second run (default: RUN-again)")
    parser.add_argument("-n", "--ranks", type=int, help="ranks (default: as recorded)")
    parser.add_argument("--max-steps", type=int, help="train and compare so many steps only")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="of losses, where the bits cannot be the same (default: 0.05)"
    )
    given = parser.parse_args(argv)
    for name in ("ranks", "max_steps"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, expected 1 or more")
    if not given.tolerance >= 0:
        parser.error(f"--tolerance is {given.tolerance:g}, expected 0 or more")
    from medmpi.train.compare import CompareError, markdown
    from medmpi.train.reproduce import reproduce

    run = given.run.absolute()
    out = given.out or run.with_name(run.name + "-again")
    more = ["--max-steps", str(given.max_steps)] if given.max_steps else []
    try:
        verdict = reproduce(run, out, given.ranks, more, given.tolerance)
    except CompareError as error:
        print(f"medmpi: error: {error}", file=sys.stderr)
        return 1
    if isinstance(verdict, int):
        print(f"medmpi: error: the second training ended with exit code {verdict}", file=sys.stderr)
        return verdict
    print(f"\n{markdown(verdict.table)}\n\n{verdict.text}")
    return 0 if verdict.same else 1
