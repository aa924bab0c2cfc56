"""``medmpi train``: the same as ``python -m medmpi.train``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    from medmpi.train.main import main as train

    return train(argv, prog="medmpi train")
