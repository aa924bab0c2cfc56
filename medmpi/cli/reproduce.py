"""``medmpi reproduce RUN``: trains a run folder's run again and says whether the same came out.

``medmpi reproduce s0`` to ``s4`` prints a seed document's figures, what is doubtful in them, and runs beside them.
"""

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
        "losses, scores and weights: bit for bit where that is due, else within --tolerance. Or prints the figures of "
        "a seed document, s0 to s4, with what contradicts itself in them.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or s0, s1, s2, s3, s4")
    parser.add_argument("--out", type=Path, help="folder of the second run (default: RUN-again)")
    parser.add_argument("-n", "--ranks", type=int, help="ranks (default: as recorded)")
    parser.add_argument("--max-steps", type=int, help="train and compare so many steps only")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="of losses, where the bits cannot be the same (default: 0.05)"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="RUN", help="with s0 to s4: run folders to print as well"
    )
    given = parser.parse_args(argv)
    if str(given.run) in ("s0", "s1", "s2", "s3", "s4") and not given.run.exists():
        return _published(str(given.run), given.beside)
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


def _published(seed: str, runs: Sequence[Path]) -> int:
    """A seed's table, its contradictions, and what runs of ours came to."""
    from medmpi.evaluation.published import SEEDS
    from medmpi.train.compare import CompareError, markdown, read

    table = SEEDS[seed]()
    names = ("accuracy", "precision", "recall", "f1")
    head, rows = ["measured here", *names, "seconds", "epochs", "ranks"], []
    try:
        for folder in runs:
            run = read(folder)
            scores = [f"{100 * run.test[name]:.2f}" if run.test else "-" for name in names]
            rows.append([run.name, *scores, f"{sum(run.column('time_s')):.0f}", str(len(run.rows)), str(run.ranks)])
    except CompareError as error:
        print(f"medmpi: error: {error}", file=sys.stderr)
        return 1
    print(markdown((table.title, table.head, table.rows)))
    for finding in table.findings:
        print(f"  doubtful: {finding}")
    if rows:
        print("\n" + markdown(("Runs of this machine, per cent on the test split", head, rows)))
    return 0
