"""Processes of a job that a test has started."""

from __future__ import annotations

import os
from pathlib import Path


def ranks_of(module: str, mark: str) -> list[int]:
    """The processes that run ``-m module`` with ``mark`` in an argument, without launchers; youngest last."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        python = "python" in Path(words[0]).name
        if python and words[1:3] == ["-m", module] and any(mark in word for word in words):
            found.append(int(entry.name))
    return sorted(found)
