"""``medmpi train -n N --supervise K``: starts ranks, and starts them again from the last checkpoint if they fail."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

from medmpi.parallel import run
from medmpi.parallel.guard import process_state
from medmpi.train import folder as folders
from medmpi.train.config import ConfigError, parse
from medmpi.train.failure import BAD_DATA, DIVERGED, DONE, ERROR, INTERRUPTED, REQUEUE, USAGE, WATCHDOG, Failure
from medmpi.train.options import Options

_FINAL = (DONE, USAGE, BAD_DATA, DIVERGED, REQUEUE, INTERRUPTED)
_JOB = "MEDMPI_JOB"
_OTHERS_END = 3.0  # seconds in which ranks end the job of which one is stopped by a signal
_LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_SAID = re.compile(r"\[rank \d+\] (watchdog|rank \d+|work queue|exception|medmpi: error)")
_RANK = tuple(f"{name}=".encode() for name in _LAUNCHED)
_STEP = re.compile(r"step-(\d+)\.state\.safetensors$")


class _Attempt(threading.Thread):
    """Finds out who failed in one start: from what the ranks say, and by watching which of them ends first.

    MPICH ends all other ranks within milliseconds when one dies, and names any of them. A rank that is stopped by a
    signal for ``timeout`` seconds, and a few more in which the others can end the job, is killed: it may be alone, or
    the others have left, and the launcher would wait for it for ever.
    """

    def __init__(self, job: str, ranks: int, timeout: float) -> None:
        super().__init__(name="medmpi supervisor", daemon=True)
        self.job, self.ranks, self._timeout = job, ranks, timeout
        self.first: list[str] = []  # those that ended first; several where they could not be told apart
        self.said: list[str] = []
        self.watched: dict[int, int] = {}  # process ids, and the descriptors that tell of their end
        self._stopped: dict[int, float] = {}  # seconds for which processes were seen to be stopped
        self._looked = time.monotonic()
        self._over = threading.Event()
        self.start()

    def see(self, line: str) -> None:
        """A line of the ranks' output."""
        if _SAID.match(line):
            self.said.append(line)

    def run(self) -> None:
        poll, watched, names = select.poll(), self.watched, dict[int, str]()
        while not self._over.is_set() and not self.first:
            if len(watched) < self.ranks:
                for pid, rank in ranks_of(self.job).items():
                    if pid not in watched:
                        try:
                            watched[pid] = fd = os.pidfd_open(pid)
                        except OSError:  # gone again
                            continue
                        names[fd] = f"rank {rank} (process {pid} on {socket.gethostname()})"
                        poll.register(fd, select.POLLIN)
            self.first = [names[fd] for fd, _ in poll.poll(200)]
            self._end_stopped(watched, _OTHERS_END)
        for fd in watched.values():
            os.close(fd)
        while not self._over.wait(0.2):
            self._end_stopped(ranks_of(self.job), 0.0)

    def _end_stopped(self, processes: Iterable[int], more: float) -> None:
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 0.5), now  # this process may have been stopped as well
        stopped = [pid for pid in processes if process_state(pid) in ("T", "t")]
        self._stopped = {pid: self._stopped.get(pid, 0.0) + passed for pid in stopped}
        for pid, seconds in self._stopped.items():
            if seconds > self._timeout + more:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """The start is over."""
        self._over.set()
        self.join()

    def story(self, code: int) -> str:
        """What happened, in one line."""
        if self.said:
            return self.said[0]
        # MPICH's mpirun mixes the numbers of the signals that ranks died of, of its own SIGKILL for the others too
        how = (
            f"ended by a signal (mpirun: {signal.Signals(code & 127).name})"
            if is_signal(code)
            else f"ended with exit code {code}"
        )
        return f"{' or '.join(self.first) if self.first else 'a rank'} was {how}"


def main(argv: Sequence[str], prog: str) -> int:
    """The command line; the exit code of the last start."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--ranks", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--supervise", type=int, default=0)
    parser.add_argument("--min-ranks", type=int, default=1)
    if "-h" in argv or "--help" in argv:
        from medmpi.train.config import build_parser

        print(build_parser(prog).format_help(), end="")
        return DONE
    try:
        try:
            given, rest = parser.parse_known_args(list(argv))
        except SystemExit:  # argparse has printed its own line
            return USAGE
        if run.find_mpirun() is None:
            raise ConfigError("no mpirun in this environment or on PATH; install one: pip install mpich mpi4py")
        if any(name in os.environ for name in _LAUNCHED):
            raise ConfigError(f"-n and --supervise start the ranks themselves: use '{prog} -n N ...' without mpirun")
        for name in ("ranks", "min_ranks"):
            if getattr(given, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(given, name)}, expected 1 or more")
        if given.supervise < 0:
            raise ConfigError(f"--supervise is {given.supervise}, expected 0 or more restarts")
        options = parse(rest, prog)
        folder = folders.locate(options)
    except (ConfigError, Failure) as error:
        if not any(os.environ.get(name, "0") != "0" for name in _LAUNCHED):  # started on several ranks: say it once
            print(f"medmpi: error: {error}", file=sys.stderr)
        return error.code if isinstance(error, Failure) else USAGE
    return Supervisor(rest, options, folder, given.ranks, given.supervise, given.min_ranks).run()


class Supervisor:
    """Starts a training run on ``ranks`` ranks, and again after a failure, with ``--resume``."""

    def __init__(
        self, words: Sequence[str], options: Options, folder: Path, ranks: int, restarts: int, least: int
    ) -> None:
        self._words, self._options, self._folder = list(words), options, folder
        self._ranks, self._restarts, self._least = ranks, restarts, least
        self._stopped = False

    def run(self) -> int:
        """Until the run is done, cannot go on, or has been started often enough; the last exit code."""
        for number in (signal.SIGTERM, signal.SIGUSR1):  # for the moments in which no ranks run
            signal.signal(number, self._stop)
        words = ["-m", "medmpi.train", *self._words, "--out", str(self._folder)]
        for restart in range(self._restarts + 1):
            job = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            attempt = _Attempt(job, self._ranks, self._options.timeout)
            code = run.launch(
                self._ranks,
                [*words, "--resume"] if restart or self._options.resume else words,
                threads=self._options.threads,
                more={_JOB: job},
                watch=attempt.see,
            )
            attempt.close()
            end_remaining(job)
            if code in _FINAL:
                return code
            lost = code not in (ERROR, DONE)
            self._say(f"{attempt.story(code)}; {self._checkpoint()}")
            if restart == self._restarts:
                break
            if self._stopped:
                return REQUEUE
            if lost:
                self._ranks = self._fewer()
            self._say(f"starting again on {self._ranks} ranks, restart {restart + 1} of {self._restarts}")
        return code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True

    def _fewer(self) -> int:
        """One rank fewer, in whole replicas of so many stages and tiles; as many as before where that cannot be."""
        whole = self._options.stages * self._options.tiles
        fewer = (self._ranks - 1) // whole * whole
        return fewer if fewer >= max(self._least, 1) and self._options.replicas is None else self._ranks

    def _checkpoint(self) -> str:
        steps = [int(m[1]) for p in (self._folder / "checkpoints").glob("*") if (m := _STEP.search(p.name))]
        return f"the last checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"

    @staticmethod
    def _say(line: str) -> None:
        print(f"medmpi: supervise: {line}", file=sys.stderr, flush=True)


def is_signal(code: int) -> bool:
    """Whether mpirun's exit code stands for a signal: MPICH gives its number, Open MPI and shells add 128."""
    return code != WATCHDOG and (code in (6, 7, 8, 9, 11, 15) or 128 < code < 160)


def end_remaining(job: str, seconds: float = 3.0) -> None:
    """Ends the processes of a start that is over: what is left of it must not write beside the next one.

    They get ``seconds`` to go by themselves. Processes on other machines are the launcher's concern.
    """
    end = time.monotonic() + seconds
    while left := ranks_of(job):
        if time.monotonic() > end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def ranks_of(job: str) -> dict[int, str]:
    """Process id and rank of each process of a start that runs on this machine."""
    mark, found = f"{_JOB}={job}".encode(), {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and mark in (environment := _environment(int(name))):
            rank = [
                word.partition(b"=")[2].decode()
                for word in environment
                if word.startswith(tuple(f"{name}=".encode() for name in _LAUNCHED))
            ]
            if rank:  # not mpirun and its helpers
                found[int(name)] = rank[0]
    return found


def _environment(pid: int) -> list[bytes]:
    """A process's environment; empty for a zombie and for processes of other users."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
