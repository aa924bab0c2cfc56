"""The CUDA emulation finds the mistakes that it is there to find."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of mistakes."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ here")
    folder = ROOT / "csrc/cuda/emulate"
    built = tmp_path_factory.mktemp("emulation") / "emulation"
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{folder}", "-o", built]
    subprocess.run([*command, ROOT / "tests/kernels/emulation.cpp", *sorted(folder.glob("*.cpp"))], check=True)

    def run(name, order="reverse"):
        environment = {**os.environ, "MEDMPI_EMULATE_ORDER": order}
        return subprocess.run([built, name], capture_output=True, text=True, env=environment)

    return run


@pytest.mark.parametrize("order", ["reverse", "forward", "shuffle"])
def test_right_kernels_run(program, order):
    assert program("sums", order).stdout == "1000 1000"
    assert program("collective", order).stdout == f"{31 * 16} {31 * 16}"


def test_graph_runs_when_it_is_launched(program):
    assert program("graph").stdout == "nan before, 2000 2000"


def test_copies_of_page_locked_memory_run_as_late_as_they_may(program):
    # the first program overwrites what is still to be read, and reads what is not there yet
    assert program("late copy").stdout == "1 2 nan"
    assert program("late copy in order").stdout == "0 1 1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("part of a block meets", "divergent barrier: thread (0,0,0) of block (1,0,0) waits in __syncthreads"),
        ("two barriers", "divergent barrier"),
        ("lane left out", "thread (3,0,0) of block (0,0,0) has ended"),
        ("unwritten shared", "nan 1"),
        ("beyond shared", "dynamic shared memory is written beyond its end"),
        ("kernel gets host memory", "kernel argument 1 points to host memory"),
        ("too many threads", "invalid configuration argument"),
        ("wrong direction", "invalid argument"),
        ("allocation in capture", "cudaErrorStreamCaptureUnsupported"),
        ("wait in capture", "cudaErrorStreamCaptureInvalidated"),
        ("unset", "nan"),
    ],
)
def test_mistake_is_reported(program, name, message):
    found = program(name)
    assert message in found.stdout
    assert found.returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beyond allocation", "byte 256 of the nearest allocation of 256"),
        ("freed", "a kernel touches memory that is not allocated"),
        ("host reads device", "the host touches device memory outside a copy"),
    ],
)
def test_wrong_address_ends_the_process(program, name, message):
    found = program(name)
    assert found.returncode < 0
    assert message in found.stderr


def test_order_of_threads_shows_a_missing_barrier(program):
    assert program("missing barrier", "forward").stdout != program("missing barrier", "reverse").stdout
