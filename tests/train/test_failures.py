"""What goes wrong is said in one line, with the documented exit code, and leaves good files good."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from medmpi.nn import checkpoint
from medmpi.parallel.run import find_mpirun
from medmpi.train import checkpoints, trainer
from medmpi.train.failure import Failure


def _one_line(text):
    """The error line; there is exactly one and no traceback."""
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("medmpi: error: ")]
    return line


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--modle", "resnet18"], 2, "unknown flag '--modle'; did you mean '--model'?"),
        (["--lr", "high"], 2, "--lr is 'high', expected a number"),
        (["--stages", "2"], 2, "--stages 2 does not divide 1 ranks, expected a multiple of 2"),
        (["--data", "npz:/nowhere/x.npz"], 3, "/nowhere/x.npz"),
        (["--data", "floppy:a"], 2, "floppy"),
        (["--data", "phantom:size=x"], 2, "phantom"),
        (["--model", "unet"], 2, "--model unet does not fit classification data"),
        (["--task", "segmentation"], 2, "--model resnet18 does not fit segmentation data"),
        (["--model", "alexnet", "--width", "8"], 2, "alexnet has no option 'width'"),
        (["--width="], 2, "--width is '', expected a whole number"),
        (["--replicas", "2"], 2, "--replicas is 2 but there are 1 ranks"),
        (["--out", "/proc/nothing"], 1, "cannot write to the run folder /proc/nothing"),
        (["--augment", "crop:99999"], 2, "crop_padding is 99999"),
    ],
)
def test_wrong_input(tmp_path, capsys, flags, code, message):
    if "--out" not in flags:
        flags = [*flags, "--out", tmp_path / "run"]
    assert tiny.train(*flags) == code
    assert message in _one_line(capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("precious")
    assert tiny.train("--out", tmp_path) == 2
    assert "holds a run already; add --resume to continue it" in _one_line(capsys.readouterr().err)
    assert (tmp_path / "metrics.csv").read_text() == "precious"


def test_default_folders_are_numbered_and_resume_takes_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert tiny.train("--epochs", 1, "--name", "mine") == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["mine", "mine-2"]
    assert tiny.train("--epochs", 2, "--name", "mine", "--resume") == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["mine", "mine-2"]
    assert len(Path("runs/mine-2/metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("flags", [(), ("--reproducible",)])
def test_nan_three_times_ends_with_4_and_leaves_the_weights(tmp_path, monkeypatch, capsys, flags):
    """From the seventh step on the images of one sample are NaN."""
    _poison(monkeypatch, steps=range(6, 99))
    assert tiny.train("--out", tmp_path, "--no-sync-batchnorm", *flags) == 4
    captured = capsys.readouterr()
    line = _one_line(captured.err)
    assert "diverged: step 9: gradient is not finite (rank 0, samples " in line
    assert "in the input" in line
    assert captured.err.count("update left out") == 2
    events = [json.loads(line) for line in (tmp_path / "log-rank0.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "not_finite"] == [7, 8]
    weights, _ = checkpoint.load(tmp_path / "checkpoints" / "last.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())


def test_one_bad_step_changes_neither_weights_nor_running_statistics(tmp_path, monkeypatch):
    seen = []
    _poison(monkeypatch, steps=[2])
    original = trainer.Trainer._step

    def watched(self, *args):
        graph = self.job.graph
        before = (self.job.parameters.value.copy(), [b.copy() for n in graph.nodes for b in n.layer.b.values()])
        result = original(self, *args)
        after = (self.job.parameters.value, [b for n in graph.nodes for b in n.layer.b.values()])
        same = np.array_equal(before[0], after[0])
        seen.append((same, all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))))
        return result

    monkeypatch.setattr(trainer.Trainer, "_step", watched)
    assert tiny.train("--out", tmp_path, "--epochs", 1) == 0
    assert seen == [(False, False), (False, False), (True, True), (False, False)]


def _poison(monkeypatch, steps):
    original = trainer.Trainer._step

    def poisoned(self, batch, *args):
        if self.position.step in steps:
            batch.images[1, 3, 3] = np.nan
        return original(self, batch, *args)

    monkeypatch.setattr(trainer.Trainer, "_step", poisoned)


def test_disk_full_while_saving_leaves_the_old_checkpoint(tmp_path, capsys):
    """RLIMIT_FSIZE stands for the full disk: writing beyond it fails as ENOSPC does."""
    files = checkpoints.Checkpoints(tmp_path)
    small = {"w": np.ones(10, np.float32)}
    files.save(1, small, small, {"step": "1"})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(
            Failure, match=r"cannot save .*step-00000002.safetensors \(4,000,000 bytes needed, .* free\)"
        ):
            files.save(2, {"w": np.ones(1_000_000, np.float32)}, small, {"step": "2"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name for p in tmp_path.iterdir()} == {
        "last.safetensors", "step-00000001.safetensors", "step-00000001.state.safetensors",
    }  # fmt: skip
    restored = checkpoints.Checkpoints(tmp_path).restore()
    assert restored is not None
    assert restored.step == 1


def test_damaged_data_ends_with_3(tmp_path, capsys):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    assert tiny.train("--data", f"npz:{path}", "--out", tmp_path / "run") == 3
    assert str(path) in _one_line(capsys.readouterr().err)


def test_more_ranks_than_images_of_a_batch(tmp_path):
    done = tiny.launch(3, "--batch-size", 2, "--out", tmp_path)
    assert done.returncode == 2
    assert "3 ranks share a --batch-size of 2" in _one_line(done.stderr)


def test_usage_errors_are_printed_once_by_all_ranks_together():
    done = tiny.launch(3, "--epohcs", 2)
    assert done.returncode == 2
    assert "unknown flag '--epohcs'; did you mean '--epochs'?" in _one_line(done.stderr)
    assert done.stdout == ""


def test_help_is_printed_once_and_quickly():
    done = tiny.launch(2, "--help", tiny=False)
    assert done.returncode == 0
    assert done.stdout.count("usage:") == 1
    best = min(_processor_seconds([sys.executable, "-m", "medmpi.train", "--help"]) for _ in range(5))
    bare = min(_processor_seconds([sys.executable, "-c", "pass"]) for _ in range(5))
    assert best < 0.3 + bare, f"--help takes {best:.2f} s, an empty program {bare:.2f} s"


def _processor_seconds(words):
    """Of the processor: other programs take their share of the clock's."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, env=tiny.environment(), check=True, capture_output=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_to_mpirun_writes_a_checkpoint_and_ends_with_85(tmp_path, name):
    process = subprocess.Popen(
        tiny.command(2, "--epochs", 500, "--schedule", "constant", "--out", tmp_path),
        env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + tiny.PATIENCE
    while (
        not (tmp_path / "checkpoints" / "last.safetensors").exists()
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    error = process.communicate(timeout=tiny.PATIENCE)[1]
    assert process.returncode == 85, error
    assert "stopped on request at epoch" in error
    assert checkpoints.Checkpoints(tmp_path / "checkpoints").restore() is not None


def test_an_error_in_one_rank_ends_all_and_names_it(tmp_path):
    """The loader of rank 1 fails in the second epoch."""
    program = tmp_path / "faulty.py"
    program.write_text(
        "import os, sys\n"
        "from medmpi.data import DataError, Split\n"
        "from medmpi.train.main import main\n"
        "read, count = Split.read, [0]\n"
        "def faulty(self, ids):\n"
        "    count[0] += 1\n"
        "    if os.environ.get('PMI_RANK') == '1' and count[0] == 12:\n"
        "        raise DataError('/data/scan7.dcm', 'cut short')\n"
        "    return read(self, ids)\n"
        "Split.read = faulty\n"
        "sys.exit(main())\n"
    )
    done = tiny.launch(2, "--out", tmp_path / "run", program=str(program))
    assert done.returncode == 3
    line = [line for line in done.stderr.splitlines() if "scan7" in line]
    assert line == ["[rank 1] medmpi: error: /data/scan7.dcm: cut short"]


@pytest.mark.mpi_skip
@pytest.mark.parametrize("victim", [0, 1])
def test_the_time_limit_holds_while_ranks_join(tmp_path, victim):
    code = (
        "import os, signal, sys\n"
        "from medmpi.train.main import launched_rank, main\n"
        f"if launched_rank() == {victim}: os.kill(os.getpid(), signal.SIGSTOP)\n"
        f"sys.exit(main(['--timeout=1', {', '.join(map(repr, tiny.FLAGS))}, '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    mpirun = find_mpirun()
    if mpirun is None:
        pytest.skip("no mpirun in this environment: install the 'mpich' extra")
    done = subprocess.run(
        [mpirun, "-n", "2", sys.executable, "-c", code],
        env=tiny.environment(), capture_output=True, text=True, timeout=tiny.PATIENCE,
    )  # fmt: skip
    assert done.returncode in (124, 9, 137), done.stderr  # or what the launcher killed the stopped rank with
    assert f"start of MPI: rank {victim} (process " in done.stderr
