"""Python's search for cycles of objects, kept out of the way of commands.

It walks over what the modules have made, some 300,000 objects, again and again: a fifth of a command's start, an eighth
of the time of a DICOM file, and pauses of tens of milliseconds in the middle of an image. The modules' objects stay
anyway.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLD = 10_000  # new objects between two searches among them; Python's own 700 are less than a DICOM header


@contextmanager
def spared() -> Iterator[None]:
    """No search until ``settle``, and fewer from then on. Python's own habits are back at the end."""
    enabled, thresholds = gc.isenabled(), gc.get_threshold()
    gc.disable()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        if enabled:
            gc.enable()


def settle() -> None:
    """All objects of now are left out of the searches, which begin, or go on. For the end of a start."""
    gc.freeze()
    gc.set_threshold(_THRESHOLD, *gc.get_threshold()[1:])
    gc.enable()
