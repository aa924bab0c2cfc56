"""``medmpi compare SEQUENTIAL PARALLEL ...``: run folders beside each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Prints tables and writes a page; 0 done, 1 where a folder is no run, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="medmpi compare",
        description="Accuracy and time of runs by epoch, speed-up and efficiency; the first run is the base.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, the sequential one first")
    parser.add_argument("--to", metavar="FILE.html", help="also write the tables with figures to this file")
    given = parser.parse_args(argv)
    if len(given.runs) < 2:
        parser.error("give two or more run folders")
    from medmpi.train.compare import CompareError, compare

    try:
        print(compare([Path(run) for run in given.runs], None if given.to is None else Path(given.to)))
    except CompareError as error:
        print(f"medmpi: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"medmpi: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
