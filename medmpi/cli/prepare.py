"""``medmpi prepare``: the same as ``python -m medmpi.prepare``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Prepares images; returns the exit code."""
    from medmpi.prepare.main import main as prepare

    return prepare(argv, prog="medmpi prepare")
