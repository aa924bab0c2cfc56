"""What ends all ranks when one of them fails, hangs, disappears or leaves early, and says which and where.

One guard serves a process. Its watchdog thread reads the pages on which the ranks of a node tell what they are doing;
it costs a microsecond or less per operation, and works while the main thread is stuck inside MPI.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import fcntl
import math
import os
import signal
import socket
import stat
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from ..kernels.collective import Vigil

EXIT_ERROR, EXIT_USAGE, EXIT_REQUEUE, EXIT_WATCHDOG, EXIT_INTERRUPT = 1, 2, 85, 124, 130
_exit_now = os._exit
_GRACE = 1.0  # seconds in which the others may leave too before a failing exit ends them


class Guard:
    """The hooks, signal handlers and watchdog of this process."""

    def __init__(self, rank: int, size: int, end_all: Callable[[int], None]) -> None:
        self.rank, self.size = rank, size
        self.groups: list[Any] = []  # a Watch for each world
        self.stop = False
        self.exit_code: int | None = None
        self._end_all = end_all
        self._pid = os.getpid()
        self._ending = threading.Lock()
        self._interrupted: float | None = None
        self._wake_in, self._wake_out = -1, -1
        self._closed = threading.Event()
        self._restore: list[Callable[[], object]] = []

    # -- installation ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Takes over signals, exception hooks and exit of this process. Call once, from the main thread."""
        self._catch_signals()
        if self.size > 1:
            self._wake_on_signals()
            self._replace(sys, "excepthook", self._on_exception)
            self._replace(threading, "excepthook", self._on_thread_exception)
            self._replace(sys, "exit", self._on_exit_call)
            self._replace(os, "_exit", self._on_hard_exit)
            # only the thread that takes the signal (the main one): the other threads' frames change while they are
            # read, which can crash the rank before the message is out
            faulthandler.register(signal.SIGUSR2, all_threads=False)
            atexit.register(self._at_exit)
            threading.Thread(target=self._watch, name="medmpi watchdog", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether it has been uninstalled."""
        return self._closed.is_set()

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, value)
        self._restore.append(partial(setattr, owner, name, old))

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGUSR1):
            old = signal.signal(number, self._on_stop_signal)
            self._restore.append(partial(signal.signal, number, old))

    def _wake_on_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # the C handler writes the number here even when the main thread cannot run Python code
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        previous = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        self._restore.append(partial(signal.set_wakeup_fd, previous))

    def uninstall(self) -> None:
        """Gives hooks and signals back; the watchdog ends."""
        self._closed.set()
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        atexit.unregister(self._at_exit)
        if self._wake_in >= 0:
            with contextlib.suppress(OSError):  # the watchdog has woken up by itself and closed it
                os.write(self._wake_in, b"\0")

    # -- ending ------------------------------------------------------------------------------------------------------

    def abort(self, code: int, message: str) -> None:
        """Prints the message (the first rank of a node that ends the job does) and ends all ranks. Never returns."""
        first = False not in [world.group.claim_abort(code) for world in self.groups]
        if first:
            with contextlib.suppress(OSError, ValueError):
                prefix = f"[rank {self.rank}] "
                sys.stderr.write("".join(f"{prefix}{line}\n" for line in message.rstrip().splitlines()))
                sys.stderr.flush()
        self._die(code, first)

    def _die(self, code: int, first: bool) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        if self._ending.acquire(blocking=False):
            # should MPI not come back, the process must end all the same
            threading.Timer(1.5, _exit_now, (code,)).start()
            if first:
                drain()
                self._end_all(code)
            time.sleep(1.0)
            _exit_now(code)
        while True:  # another thread is ending this process
            time.sleep(1.0)

    def _on_exception(self, kind: type[BaseException], value: BaseException, tb: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            self.abort(EXIT_INTERRUPT, "interrupted")
        text = "".join(traceback.format_exception(kind, value, tb))
        self.abort(EXIT_ERROR, text + "".join(f"this rank was{place}" for w in self.groups if (place := w.place())))

    def _on_thread_exception(self, args: Any) -> None:
        if not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else "a thread"
            text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
            self.abort(EXIT_ERROR, f"exception in thread {name}\n{text}")

    # -- leaving -----------------------------------------------------------------------------------------------------

    def _on_exit_call(self, code: object = None) -> None:
        self.exit_code = exit_number(code)
        raise SystemExit(code)

    def _on_hard_exit(self, code: int) -> None:
        """``os._exit``: launchers may take a rank that goes with 0 and without MPI's farewell for a job well done."""
        if os.getpid() != self._pid:  # a forked child
            _exit_now(code)
        self.abort(code or EXIT_ERROR, f"os._exit({code}) without the other ranks")

    def _at_exit(self) -> None:
        """Leaves together with the other ranks: nobody may go while another still works or waits for it."""
        code = self.exit_code or 0
        # until this process has gone, so in MPI's farewell too
        Vigil("end of the job", max((w.timeout for w in self.groups), default=math.inf), math.inf, EXIT_WATCHDOG)
        for world in self.groups:
            world.group.set_leaving(code)
        start = time.monotonic()
        while any(stay := world.staying() for world in self.groups):
            if code and time.monotonic() - start > _GRACE:
                self.abort(EXIT_ERROR if code == EXIT_REQUEUE else code, f"ends with exit code {code}, but not {stay}")
            time.sleep(0.002)
        codes = [c for world in self.groups for c in world.exit_codes() if c]
        self.uninstall()
        if codes and code and codes[0] != code:  # launchers combine differing codes into a meaningless one
            sys.stdout.flush()
            sys.stderr.flush()
            self.finalize()
            _exit_now(codes[0])

    @staticmethod
    def finalize() -> None:
        """Ends MPI in good order."""
        from mpi4py import MPI

        MPI.Finalize()

    # -- signals and the watchdog ------------------------------------------------------------------------------------

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def _watch(self) -> None:
        while not self._closed.wait(0.0 if self._wake_out >= 0 else 0.1):
            self._listen(0.1)
            if self._closed.is_set():
                break
            if self._interrupted is not None and time.monotonic() - self._interrupted > 0.5:
                self.abort(EXIT_INTERRUPT, "interrupted")
            for world in list(self.groups):
                code = world.group.aborted()
                if code is not None:
                    time.sleep(0.5)  # the rank that ends the job prints first
                    self._die(code, False)
                problem = world.problem()
                if problem is not None:
                    self.abort(*problem)
        for fd in (self._wake_in, self._wake_out):
            if fd >= 0:
                os.close(fd)

    def _listen(self, seconds: float) -> None:
        """Waits for signals that arrive at this process, whatever its main thread is doing."""
        if self._wake_out < 0:
            return
        import select

        if select.select([self._wake_out], [], [], seconds)[0]:
            for number in os.read(self._wake_out, 64):
                if number in (signal.SIGTERM, signal.SIGUSR1):
                    self.stop = True
                elif number == signal.SIGINT and self.size > 1:
                    self._interrupted = time.monotonic()


def drain() -> None:
    """Waits until the launcher has read what this process printed: it may forget the rest when the job is aborted."""
    end = time.monotonic() + 0.5
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            unread = bytearray(4)
            while stat.S_ISFIFO(os.fstat(fd).st_mode) and time.monotonic() < end:
                fcntl.ioctl(fd, termios.FIONREAD, unread)
                if not any(unread):
                    break
                time.sleep(0.002)
    time.sleep(0.1)  # from the launcher's process on this node to mpirun


def exit_number(code: object) -> int:
    """The process exit code that ``sys.exit(code)`` gives."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else EXIT_ERROR


def process_state(pid: int) -> str:
    """The state letter of a process of this machine (``T`` stopped, ``Z`` or empty: gone)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def host_name() -> str:
    """This machine's name, as messages show it."""
    return socket.gethostname()
