"""`python -m medmpi.train`: from the command line to an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from medmpi.garbage import settle, spared
from medmpi.train.config import ConfigError, build_parser, parse
from medmpi.train.failure import BAD_DATA, DONE, ERROR, INTERRUPTED, REQUEUE, USAGE, Failure, StopRequested
from medmpi.train.options import Options

if TYPE_CHECKING:
    from medmpi.parallel import World


class Settings(Protocol):
    """What any command's settings have."""

    @property
    def timeout(self) -> float:
        """Seconds that a rank may keep the others waiting."""
        ...


T = TypeVar("T", bound=Settings)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
LAUNCHER_FLAGS = ("-n", "--ranks", "--supervise", "--min-ranks")
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """The rank as the launcher's environment tells it, before MPI is started; 0 without a launcher."""
    for name in _RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return 0


def main(argv: Sequence[str] | None = None, prog: str = "python -m medmpi.train") -> int:
    """Runs a training and returns its exit code. Every expected failure is one line on rank 0's stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] in LAUNCHER_FLAGS for word in argv):
        from medmpi.train.supervise import main as supervise

        return supervise(argv, prog)

    def train(options: Options, world: World) -> None:
        from medmpi.train.run import run

        run(options, world)

    return launch(argv, lambda: build_parser(prog).format_help(), lambda: parse(argv, prog), train)


def launch(
    argv: Sequence[str],
    help_text: Callable[[], str],
    read: Callable[[], T],
    action: Callable[[T, World], None],
) -> int:
    """Runs ``action`` with the settings that ``read`` gives on rank 0, on all ranks; the exit code.

    The settings must have ``timeout`` (seconds). Every expected failure is one line on rank 0's stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that are no characters
    if "numpy" not in sys.modules:  # its threads beside the kernels' would only be in the way
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with spared():
        return _launch(argv, help_text, read, action)


def _launch(
    argv: Sequence[str],
    help_text: Callable[[], str],
    read: Callable[[], T],
    action: Callable[[T, World], None],
) -> int:
    if "-h" in argv or "--help" in argv:
        if launched_rank() == 0:
            print(help_text(), end="")
        return DONE
    options: T | None = None
    problem: str | None = None
    if launched_rank() == 0:
        try:
            options = read()
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)
        except ConfigError as error:
            problem = str(error)
            if "PMI_SIZE" not in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
                return _fail(problem, USAGE)  # nobody else is waiting
    return _run(options, problem, action, _given_timeout(argv))


def _given_timeout(argv: Sequence[str]) -> float | None:
    """The value of --timeout, for the moment in which ranks but the first have no settings yet."""
    for i, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == "--timeout":
            with contextlib.suppress(ValueError, IndexError):
                return max(float(value or argv[i + 1]), 0.0) or None
    return None


def _run(options: T | None, problem: str | None, action: Callable[[T, World], None], stopped: float | None) -> int:
    from medmpi import parallel  # starts MPI

    # The settings are with rank 0 until the ranks have met, and so is the time limit that the user may have set.
    patience = options.timeout if options is not None else stopped
    world = parallel.start(stopped=patience)
    world.timeout = patience or world.timeout
    options, problem = world.broadcast((options, problem))
    if problem is not None or options is None:
        return _fail(problem or "no settings", USAGE, world.rank)
    world.timeout = options.timeout
    from medmpi.data import DataError

    settle()
    try:
        action(options, world)
    except Failure as failure:
        return _fail(str(failure), failure.code, world.rank)
    except DataError as error:  # met by one rank in the middle of the run
        return _end_all(world, str(error), BAD_DATA)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return _end_all(world, f"{error.filename or 'the run folder'}: {error.strerror}", ERROR)
    except StopRequested as stop:
        if world.rank == 0:
            print(f"medmpi: stopped on request at {stop}; start again with --resume", file=sys.stderr)
        return REQUEUE
    except KeyboardInterrupt:
        if world.size > 1:
            raise  # the guard ends all ranks
        return _fail("interrupted", INTERRUPTED)
    return DONE


def _end_all(world: World, message: str, code: int) -> int:
    """One rank cannot go on and the others do not know: ends them too."""
    if world.size > 1:
        world.abort(code, f"medmpi: error: {message}")
    return _fail(message, code)


def _fail(message: str, code: int = ERROR, rank: int = 0) -> int:
    if rank == 0:
        print(f"medmpi: error: {message}", file=sys.stderr)
    return code
