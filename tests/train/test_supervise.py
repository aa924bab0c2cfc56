"""A supervised run that is struck goes on by itself and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from medmpi.train import supervise
from medmpi.train.log import read_metrics
from medmpi.train.options import Options

pytestmark = pytest.mark.mpi_skip


def supervised(folder, *flags, ranks=2):
    """A supervised tiny run with its output as text."""
    words = ["-n", str(ranks), "--supervise", "3", *tiny.FLAGS, "--reproducible", "--out", str(folder), *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "medmpi.train", *words],
        env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def strike(process, folder, number, rows):
    """Sends a signal to rank 1 once the run has written so many rows of metrics."""
    deadline = time.monotonic() + tiny.PATIENCE
    while len(read_metrics(folder / "metrics.csv")) < rows and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    for name in Path("/proc").glob("[0-9]*"):
        try:
            words = (name / "cmdline").read_bytes().split(b"\0")
            environment = (name / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and (b"PMI_RANK=1" in environment or b"OMPI_COMM_WORLD_RANK=1" in environment):
            os.kill(int(name.name), number)
            return
    raise AssertionError("rank 1 was not found")


FLAGS = ("--data=phantom:size=16,samples=96", "--epochs=8", "--timeout=6")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    process = supervised(out, *FLAGS)
    output = process.communicate(timeout=tiny.PATIENCE)[0]
    assert process.returncode == 0, output
    assert "supervise" not in output
    return out


@pytest.mark.timeout(2 * tiny.PATIENCE)
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, r"supervise: rank 1 (process "),
        (signal.SIGSTOP, "is stopped by a signal"),
    ],
    ids=["kill", "stop"],
)
def test_a_struck_run_ends_as_the_unbroken_one(tmp_path, unbroken, number, says):
    process = supervised(tmp_path / "run", *FLAGS)
    strike(process, tmp_path / "run", number, rows=2)
    output = process.communicate(timeout=tiny.PATIENCE)[0]
    assert process.returncode == 0, output
    assert says in output
    assert "starting again on 1 ranks, restart 1 of 3" in output
    mine, other = tiny.state(tmp_path / "run"), tiny.state(unbroken)
    weights = [name for name in other if not name.startswith(("state/", "position", "metrics"))]
    tiny.assert_same({n: mine[n] for n in weights}, {n: other[n] for n in weights})
    tiny.assert_same({"metrics": mine["metrics"]}, {"metrics": other["metrics"]})


@pytest.mark.timeout(2 * tiny.PATIENCE)
def test_a_stop_on_request_is_not_a_failure(tmp_path):
    process = supervised(tmp_path / "run", "--epochs=200")
    strike(process, tmp_path / "run", signal.SIGTERM, rows=1)
    output = process.communicate(timeout=tiny.PATIENCE)[0]
    assert process.returncode == 85, output
    assert "supervise" not in output


def test_what_cannot_be_mended_is_not_tried_again(tmp_path):
    process = supervised(tmp_path / "run", "--data=npz:/nowhere.npz")
    output = process.communicate(timeout=tiny.PATIENCE)[0]
    assert process.returncode == 3, output
    assert output.count("/nowhere.npz") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--supervise=-1"], "--supervise is -1, expected 0 or more restarts"),
        (["-n", "0"], "--ranks is 0, expected 1 or more"),
        (["-n", "2", "--min-ranks", "0"], "--min-ranks is 0"),
        (["-n", "2", "--epohcs", "3"], "did you mean '--epochs'?"),
    ],
)
def test_wrong_use(flags, says, capsys):
    assert supervise.main(flags, "medmpi train") == 2
    assert says in capsys.readouterr().err


def test_under_mpirun_it_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "0")
    assert supervise.main(["--supervise", "2"], "medmpi train") == 2
    assert "start the ranks themselves: use 'medmpi train -n N ...' without mpirun" in capsys.readouterr().err


def test_ranks_after_a_loss(tmp_path):
    def fewer(ranks, least=1, **settings):
        return supervise.Supervisor([], Options(**settings), tmp_path, ranks, 1, least)._fewer()

    assert fewer(4) == 3
    assert fewer(4, least=4) == 4
    assert fewer(1) == 1
    assert fewer(6, stages=2) == 4
    assert fewer(4, replicas=4) == 4


def test_exit_codes_of_signals():
    assert [code for code in range(256) if supervise.is_signal(code)] == [6, 7, 8, 9, 11, 15, *range(129, 160)]


def test_checkpoints_within_an_epoch(tmp_path):
    assert tiny.train("--out", tmp_path, "--checkpoint-every", 3, "--epochs", 1) == 0
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*.state.safetensors"))
    assert names == ["step-00000003.state.safetensors", "step-00000004.state.safetensors"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_is_stopped_alone_is_killed(monkeypatch, ranks):
    monkeypatch.setattr(supervise, "_OTHERS_END", 0.0 if ranks == 1 else 600.0)
    job = f"test-{os.getpid()}-{ranks}"
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    started = [
        subprocess.Popen(words, env={**os.environ, "MEDMPI_JOB": job, "PMI_RANK": str(i)}, stdout=subprocess.PIPE)
        for i in range(ranks)
    ]
    attempt = supervise._Attempt(job, ranks, timeout=0.2)
    try:
        for rank in started:
            rank.stdout.read(1)
        while len(attempt.watched) < ranks:
            time.sleep(0.01)
        started[0].send_signal(signal.SIGSTOP)
        if ranks > 1:
            with pytest.raises(subprocess.TimeoutExpired):
                started[0].wait(1)
            started[1].kill()
        assert started[0].wait(60) == -signal.SIGKILL
    finally:
        attempt.close()
        for rank in started:
            rank.kill()
            rank.wait()
            rank.stdout.close()
