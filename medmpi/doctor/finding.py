"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "problem"]
"""``note``: something optional is missing. ``warning``: slower, or less, than it could be. ``problem``: fails."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do about it where it is not well."""

    subject: str
    state: State
    text: str
    cure: str = ""


Check = Callable[[], Iterable[Finding]]


def carefully(subject: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; one that fails itself is a problem of the machine as well, and ends no other."""
    try:
        yield from check()
    except Exception as error:
        text = f"the check failed: {type(error).__name__}: {error}"
        yield Finding(subject, "problem", text, "report this with the output of 'medmpi doctor --json'")
