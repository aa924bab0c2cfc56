"""Compressed DICOM pixels are decoded in a process of their own.

A codec that panics, crashes, hangs or eats all memory over a damaged file then costs that file, not the rank. The
processes are kept and used again; they end with this one. ``python -m medmpi.data.decoder`` is such a process: it reads
JSON lines (a path each) and answers with JSON (shape and dtype, or what is wrong), followed by the pixels.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

SECONDS = 60.0  # for one file
_ADDRESS_SPACE = 16 << 30
_MOST = max(1, min(4, os.cpu_count() or 1))


class Crash(DataError):
    """The decoding process died."""


class _Process:
    """One decoding process."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "medmpi.data.decoder")) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the rank alone
        )

    def decode(self, path: str, seconds: float) -> NDArray[Any]:
        assert self.child.stdin is not None
        deadline = time.monotonic() + seconds
        try:
            self.child.stdin.write(json.dumps({"path": path}).encode() + b"\n")
            answer = self._answer(deadline)
            if "error" in answer:
                raise DataError(path, answer["error"], "fetch it again, or take it out")
            pixels = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            self._fill(memoryview(pixels.reshape(-1).view(np.uint8)), deadline)  # type: ignore[arg-type]
            return pixels
        except (EOFError, BrokenPipeError, ValueError):
            self.kill()
            code = self.child.returncode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise Crash(path, f"the decoder crashed on it ({how})", "it is damaged: take it out") from None
        except TimeoutError:
            self.kill()
            raise DataError(path, f"not decoded after {seconds:.0f} s", "it is damaged: take it out") from None

    def _answer(self, deadline: float) -> Any:
        """A length of four bytes, then JSON."""
        head = bytearray(4)
        self._fill(memoryview(head), deadline)
        text = bytearray(min(int.from_bytes(head, "little"), 1 << 16))
        self._fill(memoryview(text), deadline)
        return json.loads(text)

    def _read(self, most: int, deadline: float) -> bytes:
        assert self.child.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.child.stdout], [], [], left)[0]:
            raise TimeoutError
        data = os.read(self.child.stdout.fileno(), most)
        if not data:
            raise EOFError
        return data

    def _fill(self, target: memoryview, deadline: float) -> None:
        at = 0
        while at < len(target):
            data = self._read(min(len(target) - at, 1 << 20), deadline)
            target[at : at + len(data)] = data
            at += len(data)

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


class _Pool:
    """At most a few processes, started when they are needed."""

    def __init__(self) -> None:
        self.idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self.slots = threading.BoundedSemaphore(_MOST)
        self.owner = os.getpid()

    def decode(self, path: str, seconds: float) -> NDArray[Any]:
        with self.slots:
            try:
                return self._decode(self._take(), path, seconds)
            except Crash:  # it may have died of something else, long before
                return self._decode(_Process(), path, seconds)

    def _take(self) -> _Process:
        try:
            return self.idle.get_nowait()
        except queue.Empty:
            return _Process()

    def _decode(self, process: _Process, path: str, seconds: float) -> NDArray[Any]:
        try:
            return process.decode(path, seconds)
        finally:
            if process.alive:
                self.idle.put(process)

    def close(self) -> None:
        while os.getpid() == self.owner:
            try:
                self.idle.get_nowait().kill()
            except queue.Empty:
                return


_pool: _Pool | None = None
_lock = threading.Lock()


def decode(path: str, *, seconds: float | None = None) -> NDArray[Any]:
    """The pixels of a DICOM file as pydicom gives them. DataError when the codec fails, crashes or takes too long."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = _Pool()
            atexit.register(_pool.close)
    return _pool.decode(path, SECONDS if seconds is None else seconds)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [_ADDRESS_SPACE, *(n for n in (soft, hard) if n != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in requests:
        path = json.loads(line)["path"]
        panicked = False
        try:
            from .dicom import decode_here

            pixels = np.ascontiguousarray(decode_here(path))
            answer = {"shape": pixels.shape, "dtype": pixels.dtype.str}
        except Exception as error:
            answer = {"error": f"cannot be decoded ({_short(error)})"}
        except BaseException as error:  # a panic in Rust is no Exception
            answer, panicked = {"error": f"the decoder panicked on it ({_short(error)})"}, True
        text = json.dumps(answer).encode()
        answers.write(len(text).to_bytes(4, "little") + text)
        if "error" not in answer:
            answers.write(memoryview(pixels.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        answers.flush()
        if panicked:
            return  # nobody knows what state it left


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


if __name__ == "__main__":
    _out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not get between the pixels
    _serve(sys.stdin.buffer, _out)
