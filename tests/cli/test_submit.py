"""Batch scripts: what is in them, what is refused, and a real Slurm that requeues a stopped run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medmpi.cli import main
from medmpi.cli.submit import SubmitError, parse_time
from tests.slurm import command, slurm, until  # noqa: F401

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.mpi_skip


def written(capsys, *flags):
    """The script for these flags; bash must be able to read it."""
    code = main(["submit", "--dry-run", *flags])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert subprocess.run(["bash", "-n"], input=captured.out, text=True, check=False).returncode == 0
    return captured.out


def test_slurm(capsys):
    text = written(
        capsys, "--scheduler=slurm", "--nodes=2", "--ranks=4", "--threads=8", "--time=1-02:00:00", "--queue=long",
        "--account=abc", "--memory=64G", "--setup=module load mpich", "--extra=--gres=gpu:1", "--name=a.b", "train",
        "--data", "npz:/data/my set.npz",
    )  # fmt: skip
    for line in (
        "--job-name=a.b", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--time=26:00:00", "--requeue",
        "--signal=B:USR1@120", "--open-mode=append", "--partition=long", "--account=abc", "--mem=64G", "--gres=gpu:1",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load mpich\n" in text
    assert "-n 8 " in text
    assert "-m medmpi.train --data 'npz:/data/my set.npz' --out \"runs/a.b-$SLURM_JOB_ID\" --resume &\n" in text
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    assert "OMP_NUM_THREADS=8" in text
    assert "OMP_PROC_BIND" not in text, "ranks that mpirun does not bind would all bind their threads to the first core"


@pytest.mark.parametrize("mpi", ["pmi2", "pmix"])
def test_srun(capsys, mpi):
    text = written(
        capsys, "--scheduler=slurm", "--ranks=2", "--threads=3", f"--launcher=srun-{mpi}", "train", "--resume"
    )
    assert f"srun --mpi={mpi} --ntasks=2 --cpus-per-task=3 --cpu-bind=cores --kill-on-bad-exit=1 " in text
    assert "OMP_PROC_BIND=close OMP_PLACES=cores" in text
    assert text.count("--resume") == 1


def test_whole_nodes_are_bound_by_mpirun(capsys):
    text = written(capsys, "--scheduler=slurm", "--ranks=2", "--threads=3", "--exclusive", "train")
    assert "#SBATCH --exclusive\n" in text
    assert "-bind-to core:3" in text or "--bind-to core" in text
    assert "OMP_PROC_BIND=close" in text


def test_pbs_and_sge(capsys):
    text = written(capsys, "--scheduler=pbs", "--nodes=2", "--ranks=4", "--threads=2", "--time=30", "train")
    assert "#PBS -l select=2:ncpus=8:mpiprocs=4:ompthreads=2\n" in text
    assert "#PBS -l walltime=00:30:00\n" in text
    assert "timeout --preserve-status --signal=USR1 1680 " in text
    assert 'qrerun "$PBS_JOBID"' in text
    assert '--out "runs/medmpi-$job_id"' in text
    text = written(
        capsys, "--scheduler=sge", "--ranks=4", "--parallel-environment=smp", "--", "-m", "package.job", "-x"
    )
    assert "#$ -pe smp 4\n" in text
    assert "exit 99" in text
    assert f"{sys.executable} -m package.job -x &" in text


def test_other_programs(capsys):
    assert f"{sys.executable} job.py 1 &\n" in written(capsys, "--scheduler=slurm", "job.py", "1")
    assert "--resume" not in written(capsys, "--scheduler=slurm", "infer", "--help")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--scheduler=slurm"], "the command is missing"),
        (["--scheduler=slurm", "trian"], "unknown command 'trian', expected train"),
        (["--scheduler=slurm", "--time=soon", "train"], "--time is 'soon', expected HH:MM:SS"),
        (["--scheduler=slurm", "--time=1", "train"], "--time is 1, expected more than the --early 120 s"),
        (["--scheduler=slurm", "--ranks=0", "train"], "--ranks is 0, expected 1 or more"),
        (["--scheduler=slurm", "--name=a b", "train"], "--name is 'a b', expected letters"),
        (["--scheduler=pbs", "--launcher=srun-pmi2", "train"], "--launcher srun-pmi2 is Slurm's"),
    ],
)
def test_refusals(capsys, flags, says):
    assert main(["submit", *flags]) == 2
    assert says in capsys.readouterr().err


def test_without_a_scheduler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", "train"]) == 2
    assert "no scheduler found here" in capsys.readouterr().err
    script = tmp_path / "job.sh"
    assert main(["submit", "--scheduler=sge", "--script", str(script), "train"]) == 2
    assert "job.sh is written, but there is no qsub here" in capsys.readouterr().err
    assert os.access(script, os.X_OK)


def test_times():
    assert parse_time("90") == 5400
    assert parse_time("2-00:00:01") == 172801
    with pytest.raises(SubmitError, match="expected HH:MM:SS"):
        parse_time("0")


def test_the_script_passes_the_signal_on_and_asks_for_a_rerun(tmp_path, capsys, monkeypatch):
    """SGE's script as it would be run there, with a time limit of three seconds and a program that ends with 85."""
    program = tmp_path / "job.py"
    program.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *a: sys.exit(85))\n"
        "print('begun', flush=True)\n"
        "time.sleep(30)\n"
    )
    text = written(capsys, "--scheduler=sge", "--time=00:00:06", "--early=3", str(program))
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-s"], input=text, env={**os.environ, "JOB_ID": "7"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 99, done.stderr
    assert "begun" in done.stdout
    assert time.monotonic() - start < 25


@pytest.mark.timeout(180)
def test_a_real_slurm_requeues_a_stopped_run_and_it_goes_on(tmp_path, slurm):  # noqa: F811
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    out, log = tmp_path / "run", tmp_path / "job.out"
    training = [
        "--data=phantom:size=16,samples=96", "--width=4", "--stem=small", "--batch-size=12", "--epochs=900",
        "--threads=1", "--no-report", "--out", str(out),
    ]  # fmt: skip
    words = ["--ranks=2", "--time=30", f"--extra=--output={log}"]
    script = str(tmp_path / "job.sh")
    done = subprocess.run(
        [sys.executable, "-m", "medmpi.cli", "submit", *words, "--script", script, "train", *training],
        env=slurm, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    first = out / "checkpoints" / "last.safetensors"
    assert until(first.exists, 60), log.read_text() if log.exists() else "the job has not begun"
    command(slurm, "scancel", "--batch", "--signal=USR1", job)
    state = ("squeue", "-h", "-j", job, "-o", "%t")
    assert until(lambda: "PD" in command(slurm, *state), 40), log.read_text()
    assert "stopped on request at" in log.read_text()

    def begins() -> bool:  # it would wait two minutes, and cannot be told otherwise while the first start is cleared up
        command(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(3)
        return "resumed at epoch" in log.read_text()

    begun = until(begins, 60)
    held = command(slurm, "squeue", "-h", "-j", job, "-o", "%t %r").strip()
    if not begun and log.read_text().count("2 ranks on 1 node") == 1:  # put back as it should be, but never started
        pytest.skip(f"this Slurm does not start the requeued job: {held or 'it is gone'}")
    assert begun, f"{held}: {log.read_text()}"
    assert log.read_text().count("2 ranks on 1 node") == 2
