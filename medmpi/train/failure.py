"""Failures that a user can understand: one line and an exit code, the same on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from medmpi.parallel import World

DONE, ERROR, USAGE, BAD_DATA, DIVERGED, REQUEUE, WATCHDOG, INTERRUPTED = 0, 1, 2, 3, 4, 85, 124, 130
"""The exit codes of every medmpi command."""

T = TypeVar("T")


class Failure(Exception):
    """Ends the program with one line on rank 0 and an exit code; no traceback."""

    def __init__(self, message: str, code: int = ERROR) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


class StopRequested(Exception):
    """A signal asked the run to stop; the checkpoint is written. Ends with exit code 85."""


def together(world: World, action: Callable[[], T]) -> T:
    """Runs `action` on every rank; if it fails with a Failure anywhere, all ranks raise the first failing rank's.

    Collective: without it the ranks on which the action worked would wait for the one on which it did not.
    """
    failure: Failure | None = None
    result: T | None = None
    try:
        result = action()
    except Failure as error:
        failure = error
    found = world.allgather(None if failure is None else (str(failure), failure.code))
    for rank, entry in enumerate(found):
        if entry is not None:
            message, code = entry
            same_everywhere = all(other == entry for other in found)
            raise Failure(message if same_everywhere or rank == 0 else f"rank {rank}: {message}", code)
    return cast(T, result)


def on_root(world: World, action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 and gives its result to all; its Failure or OSError is a Failure on all. Collective."""
    outcome: tuple[T | None, str | None, int] = (None, None, DONE)
    if world.rank == 0:
        try:
            outcome = (action(), None, DONE)
        except Failure as error:
            outcome = (None, str(error), error.code)
        except OSError as error:
            outcome = (None, f"{error.filename or 'writing the run folder'}: {error.strerror or error}", ERROR)
    result, message, code = world.broadcast(outcome)
    if message is not None:
        raise Failure(message, code)
    return cast(T, result)
