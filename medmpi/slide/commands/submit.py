"""``medmpi slide submit``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from medmpi.slide import manifest as manifests
from medmpi.slide.commands.options import memory, parser, positive
from medmpi.slide.launch import DONE, ERROR, UsageError, say, usage
from medmpi.slide.ledger import Ledger
from medmpi.slide.submit import LIMITS, SCHEDULERS, Resources, write_scripts

_TOOLS = {"slurm": "sbatch", "sge": "qsub", "pbs": "qsub"}


def main(argv: Sequence[str]) -> int:
    """Writes the array scripts of what is not done, and submits them unless told not to."""
    p = parser("submit", "The open and failed items of a run as array jobs; tasks import no MPI.")
    p.add_argument("run", type=Path, help="run folder ('medmpi slide run --only-manifest' makes one)")
    p.add_argument("--scheduler", choices=SCHEDULERS, required=True)
    p.add_argument("--dry-run", action="store_true", help="write the scripts and submit nothing")
    p.add_argument("--cores", type=positive, default=4, help="cores a task")
    p.add_argument("--mem", type=memory, default=memory("4GiB"), help="memory a task")
    p.add_argument("--time", default="04:00:00", help="time limit of a task")
    p.add_argument("--queue", help="partition or queue")
    p.add_argument("--items-per-task", type=positive, default=1, help="items (groups) a task")
    p.add_argument("--max-tasks", type=positive, help=f"tasks of one array (none: {LIMITS})")
    p.add_argument("--max-running", type=positive, help="tasks that may run at once, an array")
    p.add_argument("--directive", action="append", default=[], help="a further line for the scripts' heads")
    args = p.parse_args(argv)
    ledger = Ledger(args.run, manifests.load(args.run))
    status = ledger.status()
    items = sorted([*status.open, *status.failed], key=lambda item: item.index)
    if not items:
        say(f"{status.line()}; nothing to submit")
        return DONE
    resources = Resources(
        cores=args.cores, memory=args.mem >> 20, time=args.time, queue=args.queue, extra=tuple(args.directive),
        max_tasks=args.max_tasks, max_running=args.max_running, per_task=args.items_per_task,
    )  # fmt: skip
    with usage():
        master = write_scripts(args.run, items, args.scheduler, resources)
    say(f"{status.line()}; scripts in {master.parent}")
    if args.dry_run:
        return DONE
    if shutil.which(_TOOLS[args.scheduler]) is None:
        raise UsageError(f"there is no {_TOOLS[args.scheduler]} here, expected {args.scheduler}; run {master} there")
    return ERROR if subprocess.run(["bash", str(master)], check=False).returncode else DONE
