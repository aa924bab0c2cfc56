"""``medmpi slide status``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmpi.slide import manifest as manifests
from medmpi.slide.commands.options import parser
from medmpi.slide.job import tell
from medmpi.slide.ledger import Ledger


def main(argv: Sequence[str]) -> int:
    """Lists what is not done; 0 where all is, 3 where items failed, 85 where some are open."""
    p = parser("status", "What is done, failed, open and skipped of a run.")
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--verify", action="store_true", help="read every result and check its checksum")
    args = p.parse_args(argv)
    ledger = Ledger(args.run, manifests.load(args.run))
    return tell(ledger, ledger.status(verify=args.verify), set())
