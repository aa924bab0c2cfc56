"""Launchers that do not fit, threads, settings compared over ranks, and ``medmpi run``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medmpi.parallel import launch, run
from medmpi.parallel.guard import exit_number
from medmpi.parallel.world import differences

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, **environ}, capture_output=True, text=True, timeout=300
    )


def test_launch_problems() -> None:
    assert launch.launch_problem(1, "", {}) is None
    assert launch.launch_problem(None, "no MPI", {}) is None
    assert launch.launch_problem(4, "", {"PMI_SIZE": "4"}) is None
    assert launch.launch_problem(1, "", {"PMI_SIZE": "1"}) is None
    slurm = launch.launch_problem(1, "", {"SLURM_STEP_NUM_TASKS": "4"})
    assert slurm is not None
    assert "SLURM_STEP_NUM_TASKS says 4 ranks" in slurm
    assert "--mpi=pmi2" in slurm
    foreign = launch.launch_problem(1, "", {"OMPI_COMM_WORLD_SIZE": "2"})
    assert foreign is not None
    assert "medmpi run -n N" in foreign
    missing = launch.launch_problem(None, "ImportError: libmpi", {"PMI_SIZE": "2"})
    assert missing is not None
    assert "libmpi" in missing
    assert "pip install mpi4py mpich" in missing


@pytest.mark.mpi_skip
def test_silent_single_ranks_are_refused() -> None:
    done = python("from medmpi import parallel; parallel.start()", OMPI_COMM_WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert "OMPI_COMM_WORLD_SIZE says 2 ranks" in done.stderr
    assert "Traceback" not in done.stderr


NO_MPI = "import sys; sys.modules['mpi4py'] = None\nfrom medmpi import parallel\n"


@pytest.mark.mpi_skip
def test_without_mpi() -> None:
    code = NO_MPI + "w = parallel.start(); print(w.size, w.library, w.comm, w.any(True), w.broadcast('x'))"
    done = python(code)
    assert done.stdout == "1 none None True x\n", done.stderr
    refused = python(code, PMI_SIZE="2")
    assert refused.returncode == 2
    assert "MPI cannot be used" in refused.stderr


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch._threads(None, 8, 2) == 4
    assert launch._threads(None, 2, 3) == 1
    assert launch._threads(5, 2, 3) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert launch._threads(None, 8, 2) == 3
    with pytest.raises(ValueError, match="threads is 0"):
        launch._threads(0, 8, 2)


def test_differences() -> None:
    assert differences([{"a": "1", "b": "2"}, {"a": "1", "b": "2"}]) == []
    lines = differences([{"a": "1"}, {"a": "2"}, {"a": "2", "b": "3"}])
    assert lines == ["a: 1 on rank 0, 2 on ranks 1, 2", "b: (not set) on ranks 0, 1, 3 on rank 2"]


def test_exit_numbers() -> None:
    assert [exit_number(c) for c in (None, 0, 85, 256 + 4, "text", True)] == [0, 0, 85, 4, 1, 1]


def test_command_lines() -> None:
    assert run.command_line(["train", "--epochs", "2"]) == [sys.executable, "-m", "medmpi.train", "--epochs", "2"]
    assert run.command_line(["job.py", "x"]) == [sys.executable, "job.py", "x"]
    assert run.command_line(["-m", "pytest"]) == [sys.executable, "-m", "pytest"]
    assert run.command_line(["python3", "-V"]) == ["python3", "-V"]


def test_environment() -> None:
    cores = len(os.sched_getaffinity(0))
    plain = run.environment(2, {}, threads=None, terminal=False)
    assert plain["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert plain["OMP_WAIT_POLICY"] == "passive"
    assert plain["MEDMPI_TTY"] == "0"
    assert run.environment(2, {"OMP_NUM_THREADS": "7"}, threads=None, terminal=False)["OMP_NUM_THREADS"] == "7"
    told = run.environment(2, {"OMP_NUM_THREADS": "7"}, threads=3, terminal=True)
    assert told["OMP_NUM_THREADS"] == "3"
    assert told["MEDMPI_TTY"] == "1"


@pytest.mark.mpi_skip
@pytest.mark.parametrize("code", [0, 85])
def test_run_passes_exit_codes(code: int) -> None:
    # one write a line, so that those of two ranks do not mix
    say = "os.write(1, b'size %d;' % parallel.start().size)"
    program = f"import os, sys; from medmpi import parallel; {say}; sys.exit({code})"
    command = [sys.executable, "-m", "medmpi.parallel.run", "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert done.stdout.count("size 2;") == 2


def test_run_refuses_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["-n", "0", "train"], "-n is 0"),
        (["-n", "2"], "command is missing"),
        (["-n", "2", "--threads", "0", "train"], "--threads is 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
