"""One rank fails, hangs, disappears or leaves: all end, in time, with the right exit code, and say who and where."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from medmpi.parallel.run import find_mpirun

JOB = Path(__file__).with_name("job.py")
ROOT = JOB.parents[2]
TIMEOUT = 1.0  # of the job's watchdog
SECONDS = 2.0  # in which all must be over, machine under test load or not: see slack()

pytestmark = pytest.mark.mpi_skip  # starts ranks of its own


@dataclass
class Ended:
    """A job that is over."""

    code: int
    output: str
    seconds: float  # since the fault


def slack() -> float:
    """How much longer things take on a machine that has more to do than cores."""
    return 1.0 + max(0.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1.0)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(*words: str, ranks: int = 2, **more: str) -> subprocess.Popen[str]:
    mpirun = find_mpirun()
    if mpirun is None:
        pytest.skip("no mpirun in this environment: install the 'mpich' extra")
    return subprocess.Popen(
        [mpirun, "-n", str(ranks), sys.executable, str(JOB), *words],
        env={**environment(), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def follow(process: subprocess.Popen[str], signal_to_send: int | None = None, ranks: int = 2) -> Ended:
    """Waits for the fault (all ranks say that they are in their steps), sends a signal there, and waits for the end."""
    assert process.stdout is not None
    limit = threading.Timer(40 * slack(), process.kill)
    limit.start()
    begun, lines = time.monotonic(), []
    with process:
        for line in process.stdout:
            lines.append(line)
            if "steps" in line and sum(done.count("steps") for done in lines) == ranks:
                begun = time.monotonic()
                if signal_to_send is not None:
                    time.sleep(0.1)
                    process.send_signal(signal_to_send)
    code = process.returncode
    if not limit.is_alive():
        pytest.fail("the job did not end:\n" + "".join(lines))
    limit.cancel()
    return Ended(code, "".join(lines), time.monotonic() - begun)


def ranks_left() -> list[str]:
    """Processes that still run the job of this test."""
    left = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            environ = (status.parent / "environ").read_bytes()
        except OSError:
            continue
        if str(JOB).encode() in words and f"MEDMPI_TEST_JOB={os.getpid()}".encode() in environ:
            left.append(status.parent.name)
    return left


def run(*words: str, ranks: int = 2, signal_to_send: int | None = None, **more: str) -> Ended:
    ended = follow(start(*words, ranks=ranks, MEDMPI_TEST_JOB=str(os.getpid()), **more), signal_to_send, ranks)
    end = time.monotonic() + SECONDS * slack()
    while ranks_left() and time.monotonic() < end:
        time.sleep(0.05)
    assert not ranks_left()
    return ended


def timely(limit: float, *words: str, signal_to_send: int | None = None) -> Ended:
    """As run; again, at most twice, where all is over only after ``limit`` seconds: the machine may have stalled."""
    for _ in range(3):
        ended = run(*words, signal_to_send=signal_to_send)
        if ended.seconds < limit * slack():
            break
    return ended


FAULTS = [
    # fault, exit code, what the output must say
    ("exception", 1, r"\[rank 1\] ValueError: bad file scan.dcm"),
    ("thread", 1, r"\[rank 1\] exception in thread loader[\s\S]*\[rank 1\] ZeroDivisionError"),
    ("exit", 3, r"rank 1 .* has ended with exit code 3 while rank 0 waits for it in 'sum of gradients'"),
    ("exit-in-world", 4, r"rank 1 .* has ended with exit code 4"),
    ("leave", 1, r"rank 1 .* has ended with exit code 0 while rank 0 waits"),
    ("skip", 1, r"rank 1 .* has ended with exit code 0 while rank 0 waits"),
    ("vanish", 1, r"\[rank 1\] os\._exit\(0\) without the other ranks"),
    ("kill", None, r""),
    (
        "other-operation",
        1,
        r"sum of gradients: rank 1 is in 'barrier after the epoch' instead|barrier after the epoch: ",
    ),
]


@pytest.mark.parametrize(("fault", "code", "says"), FAULTS, ids=[f[0] for f in FAULTS])
def test_failing_rank_ends_all(fault: str, code: int | None, says: str) -> None:
    ended = timely(SECONDS, fault)
    assert ended.code != 0
    assert code is None or ended.code == code, ended.output
    assert re.search(says, ended.output), ended.output
    assert ended.seconds < SECONDS * slack(), ended.output


@pytest.mark.parametrize("operation", ["sum", "allgather"])
@pytest.mark.parametrize("fault", ["stop", "sleep"])
def test_hanging_rank_is_named(fault: str, operation: str) -> None:
    ended = timely(TIMEOUT + 1.0, fault, operation)
    assert ended.code == 124, ended.output
    name = "sum of gradients" if operation == "sum" else "allgather"
    assert re.search(rf"\[rank 0\] watchdog: '{name}' \(operation \d+\) has waited", ended.output), ended.output
    assert re.search(r"not arrived: rank 1 \(process \d+ on \S+\)", ended.output), ended.output
    assert ("stopped by a signal" if fault == "stop" else "in strike") in ended.output
    assert TIMEOUT < ended.seconds < (TIMEOUT + 1.0) * slack()


@pytest.mark.parametrize(
    ("fault", "moment"),
    [
        ("stop-before-start", "start of MPI"),
        ("stop-before-leaving", "end of the job"),
        ("stop-in-farewell", "end of the job"),
    ],
)
def test_rank_that_is_stopped_while_ranks_join_or_leave(fault: str, moment: str) -> None:
    ended = run(fault)
    # before and after MPI there is no abort: the launcher may report what it killed the stopped rank with instead
    assert ended.code in (124, 9, 137), ended.output
    says = rf"\[rank 0\] watchdog: {moment}: rank 1 \(process \d+ on \S+\) has been stopped by a signal for \d\.\d s"
    assert re.search(says, ended.output), ended.output


def test_hang_on_another_node() -> None:
    ended = run("stop", MEDMPI_NODES="2")
    assert ended.code == 124, ended.output
    assert re.search(r"look at the other nodes: ranks 1 on", ended.output), ended.output


@pytest.mark.parametrize(
    ("fault", "code"), [("all-exit", 85), ("codes-differ", 1), ("exit-while-others-work", 3), ("late-writer", 0)]
)
def test_leaving(fault: str, code: int) -> None:
    ended = run(fault)
    assert ended.code == code, ended.output


def test_disagreement_is_shown() -> None:
    ended = run("disagree")
    assert ended.code == 2, ended.output
    assert "lr: 0.2 on rank 0, 0.1 on rank 1" in ended.output
    assert "seed" not in ended.output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_stop_on_request(number: int) -> None:
    ended = run("none", signal_to_send=number)
    assert ended.code == 85, ended.output
    for rank in (0, 1):
        assert f"checkpoint {rank}" in ended.output, ended.output


@pytest.mark.parametrize("fault", ["none", "sleep"])
def test_interrupt(fault: str) -> None:
    ended = timely(SECONDS, fault, signal_to_send=signal.SIGINT)
    assert ended.code == 130, ended.output
    assert "interrupted" in ended.output
    assert ended.seconds < SECONDS * slack()
