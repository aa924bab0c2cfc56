"""``medmpi doctor``: the same as ``python -m medmpi.doctor``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Looks the machine over; returns the exit code."""
    from medmpi.doctor.main import main as doctor

    return doctor(argv)
