"""``medmpi run -n N COMMAND``: starts ranks with the mpirun that belongs to this Python's MPI."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from .guard import EXIT_INTERRUPT, EXIT_REQUEUE


def find_mpirun() -> str | None:
    """The mpirun beside this Python (a virtual environment's own), else the first on PATH."""
    for folder in (Path(sys.executable).parent, Path(sys.prefix) / "bin"):
        if os.access(folder / "mpirun", os.X_OK):
            return str(folder / "mpirun")
    return shutil.which("mpirun") or shutil.which("mpiexec")


def command_line(words: Sequence[str]) -> list[str]:
    """What each rank executes: a program, a Python file, ``-m module``, or a command of ``medmpi``."""
    first = words[0]
    if first == "-m" or first.endswith(".py"):
        return [sys.executable, *words]
    if "/" in first or shutil.which(first):
        return list(words)
    return [sys.executable, "-m", f"medmpi.{first}", *words[1:]]


def environment(ranks: int, environ: Mapping[str, str], *, threads: int | None, terminal: bool) -> dict[str, str]:
    """The ranks' environment: threads that fit this machine's cores, waiting threads that sleep, the terminal's size.

    MPICH gives ranks no terminal, so rank 0 learns by MEDMPI_TTY that its output reaches one.
    """
    result = dict(environ)
    if threads is not None:
        result["OMP_NUM_THREADS"] = str(threads)
    elif "OMP_NUM_THREADS" not in environ:
        result["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    result.setdefault("OMP_WAIT_POLICY", "passive")
    result["MEDMPI_TTY"] = "1" if terminal else "0"
    if terminal:
        size = shutil.get_terminal_size()
        result.setdefault("COLUMNS", str(size.columns))
        result.setdefault("LINES", str(size.lines))
    # Open MPI counts cores as slots and refuses more ranks than that
    result.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    return result


def launch(
    ranks: int,
    words: Sequence[str],
    *,
    threads: int | None = None,
    more: Mapping[str, str] | None = None,
    watch: Callable[[str], None] | None = None,
) -> int:
    """Runs the command on so many ranks and returns its exit code. Signals to this process go to the ranks.

    ``more`` is added to the ranks' environment. ``watch`` is called with each line of output, which is passed on.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        sys.stderr.write(
            "medmpi run: no mpirun in this environment or on PATH; install one: pip install mpich mpi4py\n"
        )
        return 2
    pipe = None if watch is None else subprocess.PIPE
    process = subprocess.Popen(
        [mpirun, "-n", str(ranks), *command_line(words)],
        env={**environment(ranks, os.environ, threads=threads, terminal=sys.stderr.isatty()), **(more or {})},
        start_new_session=False,
        stdout=pipe,
        stderr=pipe,
    )
    copies = [
        threading.Thread(target=_copy, args=(source, target, watch), daemon=True)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        if watch is not None
    ]
    for copy in copies:
        copy.start()
    code = _wait(process)
    for copy in copies:
        copy.join(2.0)  # a process that was left behind may hold the pipe open
    return 128 - code if code < 0 else code


def _copy(source: Any, target: TextIO, watch: Callable[[str], None]) -> None:
    """Passes on output as it comes (progress bars have no line ends) and shows whole lines to ``watch``."""
    rest = ""
    while chunk := source.read1(1 << 16):
        text = chunk.decode(errors="replace")
        target.write(text)
        target.flush()
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            watch(line)


def _wait(process: subprocess.Popen[Any]) -> int:
    """The exit code of mpirun; 130 after Ctrl-C."""
    interrupted = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = interrupted or number == signal.SIGINT
        # a terminal sends Ctrl-C to the launcher as well; a second one makes it end the ranks at once
        if number != signal.SIGINT or not sys.stdin.isatty():
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = [(number, signal.signal(number, forward)) for number in numbers]
    try:
        code = process.wait()
        # ranks that were interrupted before they joined the others end with whatever MPI makes of it
        return EXIT_INTERRUPT if interrupted and code not in (0, EXIT_REQUEUE) else code
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medmpi run", description=__doc__)
    parser.add_argument("-n", "--ranks", type=int, required=True, help="number of ranks")
    parser.add_argument("--threads", type=int, default=None, help="OpenMP threads per rank (default: cores / ranks)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train ..., a program, a Python file or -m module")
    options = parser.parse_args(arguments)
    if options.ranks < 1:
        parser.error(f"-n is {options.ranks}, expected 1 or more")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads is {options.threads}, expected 1 or more")
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        parser.error("the command is missing, for example: medmpi run -n 2 train --model resnet18")
    return launch(options.ranks, words, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main())
