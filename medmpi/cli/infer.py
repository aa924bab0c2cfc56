"""``medmpi infer``: the same as ``python -m medmpi.infer``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Classifies or segments images; returns the exit code."""
    from medmpi.infer.main import main as infer

    return infer(argv, prog="medmpi infer")
