"""Whole files written by a thread, so that who makes them need not wait for the disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from medmpi.files import sync_folder, temporary_name

_LONGEST = 32  # sets in a group
_MOST_BYTES = 64 << 20  # that wait to be written
File = tuple[Path, bytes]


class WriteBehind:
    """Writes sets of files: each under another name, then all of a group are synced, then renamed.

    A disk syncs a group in little more time than one file, if it is told of all of them first. A kill leaves whole
    files under their names and others under temporary ones. The folders are synced by ``close``.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Sequence[File], Callable[[], None]] | None] = queue.Queue()
        self._room = threading.Condition()
        self._bytes = 0
        self._error: Exception | None = None
        self._folders: set[Path] = set()
        self._thread: threading.Thread | None = None

    def put(self, files: Sequence[File], then: Callable[[], None]) -> None:
        """Takes a set of files; ``then`` is called by the thread once all of them are on disk.

        Waits while too much is waiting. Raises what went wrong with an earlier set; nothing is written from then on.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="medmpi writer", daemon=True)
            self._thread.start()
        with self._room:
            self._room.wait_for(lambda: self._bytes < _MOST_BYTES or self._error is not None)
            self._check()
            self._bytes += sum(len(content) for _, content in files)
        self._waiting.put((files, then))

    def close(self) -> None:
        """Waits until everything is on disk, the folders' entries too. Raises what went wrong."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None
        self._check()
        for folder in self._folders:
            sync_folder(folder)
        self._folders.clear()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        more = True
        while more:
            group = []
            item = self._waiting.get()
            while item is not None:
                group.append(item)
                if len(group) == _LONGEST:
                    break
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
            more = item is not None
            try:
                if self._error is None:
                    self._write(group)
            except Exception as error:
                self._error = error
            with self._room:
                self._bytes -= sum(len(content) for files, _ in group for _, content in files)
                self._room.notify_all()

    def _write(self, group: list[tuple[Sequence[File], Callable[[], None]]]) -> None:
        opened: list[tuple[int, Path]] = []
        renamed = 0
        try:
            for files, _ in group:
                for path, content in files:
                    if path.parent not in self._folders:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        self._folders.add(path.parent)
                    temporary = temporary_name(path)
                    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                    opened.append((number, temporary))
                    try:
                        _write_all(number, content)
                    except OSError as error:
                        raise OSError(error.errno, error.strerror, str(path)) from None
                    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write, without waiting
            for number, _ in opened:
                os.fsync(number)
            for files, then in group:
                for path, _ in files:
                    os.replace(opened[renamed][1], path)
                    renamed += 1
                then()
        finally:
            for number, _ in opened:
                os.close(number)
            for _, temporary in opened[renamed:]:
                temporary.unlink(missing_ok=True)


def _write_all(number: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]
