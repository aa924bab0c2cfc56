"""``medmpi doctor``: looks this machine over, tries what training needs, and says what to do about what is wrong."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .finding import Finding, carefully

_SIGNS = {"ok": ("[green]", "ok"), "note": ("[dim]", "note"), "warning": ("[yellow]", "warning"),
          "problem": ("[bold red]", "PROBLEM")}  # fmt: skip
_RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def main(argv: Sequence[str]) -> int:
    """Prints a table, or JSON. 0: nothing in the way; 1: a problem; 2: wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="medmpi doctor",
        description="Looks this machine over and tries what training needs. Under mpirun or srun it tries the ranks "
        "that were started, on all nodes; else it starts some. Exit code 1 where something fails.",
    )
    parser.add_argument("-n", "--ranks", type=int, default=2, help="ranks to start (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path(), help="where runs will be written (default: here)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for the ranks (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    if given.ranks < 1:
        parser.error(f"--ranks is {given.ranks}, expected 1 or more")
    if not given.timeout > 0:
        parser.error(f"--timeout is {given.timeout:g}, expected more than 0 seconds")
    if any(os.environ.get(name, "").isdecimal() for name in _RANKS):
        return _as_rank(given)
    from . import ranks

    tried = carefully("MPI", lambda: ranks.launched(given.ranks, given.timeout))
    return _tell([*_machine(given.folder), *tried], given.json)


def _as_rank(given: argparse.Namespace) -> int:
    """One of the ranks that a launcher has started: all meet, and rank 0 looks at its machine too."""
    from medmpi.parallel import start

    from . import ranks

    with start(given.timeout) as world:
        report = ranks.meet(world)
        code = 0
        if world.rank == 0:
            code = _tell([*_machine(given.folder), *ranks.findings(report)], given.json)
        return world.broadcast(code)


def _machine(folder: Path) -> Iterator[Finding]:
    from . import device, machine, readers

    yield from carefully("kernels", machine.kernels)
    yield from carefully("threads", machine.threads)
    yield from carefully("memory", machine.memory)
    yield from carefully("disk", lambda: machine.disks(folder))
    yield from carefully("CUDA", device.device)
    yield from carefully("readers", lambda: readers.readers(folder))


def _tell(found: Sequence[Finding], as_json: bool) -> int:
    """Prints the findings; the exit code."""
    bad = sum(finding.state == "problem" for finding in found)
    if as_json:
        print(json.dumps({"good": bad == 0, "findings": [asdict(finding) for finding in found]}, indent=1))
        return 1 if bad else 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), show_header=False)
    for column in ("subject", "state", "text"):
        table.add_column(column, overflow="fold", no_wrap=column == "state")
    for finding in found:
        style, sign = _SIGNS[finding.state]
        table.add_row(finding.subject, f"{style}{sign}[/]", escape(finding.text))
        if finding.cure:
            table.add_row("", "", f"[cyan]-> {escape(finding.cure)}[/]")
    Console(highlight=False).print(table)
    warnings = sum(finding.state == "warning" for finding in found)
    what = [f"{n} {name}{'s' * (n > 1)}" for n, name in ((bad, "problem"), (warnings, "warning")) if n]
    print(", ".join(what) or "nothing in the way of training")
    return 1 if bad else 0
