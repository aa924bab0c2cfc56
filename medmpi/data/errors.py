"""The one error of the data layer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class DataError(Exception):
    """A data set or a file of it cannot be used: ``path: cause; advice`` in one line.

    It keeps its parts as ``path``, ``cause`` and ``advice`` and survives pickling, so that it can travel between ranks.
    """

    def __init__(self, path: str | os.PathLike[str], cause: object, advice: str = "") -> None:
        self.path = os.fspath(path)
        self.cause = " ".join(str(cause).split())
        self.advice = advice
        super().__init__(self.path, self.cause, advice)

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}" + (f"; {self.advice}" if self.advice else "")


class MissingPackage(DataError):
    """A file needs a package that is not installed; never skipped as a bad file is."""


def guarded(path: str | os.PathLike[str], format: str, advice: str, action: Callable[[], _T]) -> _T:
    """The action's result; whatever it raises over hostile bytes becomes a DataError of this file."""
    try:
        return action()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path") from None
    except MemoryError:
        raise DataError(path, "it needs more memory than there is", "take it out") from None
    except Exception as error:  # a tolerant parser raises of every kind
        raise DataError(path, f"it cannot be read as {format} ({error})", advice) from error
