"""``medmpi slide task``: one array task. Nothing here imports MPI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmpi.slide.commands.options import parser, positive
from medmpi.slide.job import array_items, execute


def main(argv: Sequence[str]) -> int:
    """Does the items of one array task; exit codes as ``run``."""
    p = parser("task", "The items of one array task.")
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--list", required=True, type=Path, help="list of item numbers that submit wrote")
    p.add_argument("--task", required=True, type=int, help="number of the task, from 0")
    p.add_argument("--per-task", type=positive, default=1, help="items a task")
    p.add_argument("--retries", type=int, default=1, help="further attempts at an item that failed")
    args = p.parse_args(argv)
    return execute(args.run, items=array_items(args.run, args.list, args.task, args.per_task), retries=args.retries)
