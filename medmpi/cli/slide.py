"""``medmpi slide COMMAND``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs a command on whole slides; returns the exit code."""
    from medmpi.slide.main import main as slide

    return slide(argv)
