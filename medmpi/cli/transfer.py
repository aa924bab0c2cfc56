"""``medmpi transfer``: feature extraction against fine-tuning; under mpirun, on several ranks."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs the comparison; returns the exit code."""
    from medmpi.train.transfer import main as transfer

    return transfer(argv)
