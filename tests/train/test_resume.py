"""A run that was stopped, killed or damaged goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from medmpi import models, nn
from medmpi.train import folder as folders
from medmpi.train import trainer as trainer_module
from medmpi.train.log import read_metrics


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder of a run of three epochs that nothing disturbed (12 steps)."""
    out = tmp_path_factory.mktemp("unbroken")
    assert tiny.train("--out", out) == 0
    return out


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def _kill_at(monkeypatch, step):
    """The process dies before the step with this number (from 0)."""
    original = trainer_module.Trainer._step

    def dying(self, *args):
        if self.position.step == step:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(trainer_module.Trainer, "_step", dying)


def test_a_run_leaves_what_it_promises(unbroken):
    rows = read_metrics(unbroken / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    for row in rows:
        parts = sum(float(row[name]) for name in ("t_comp", "t_comm", "t_wait", "t_io"))
        assert parts <= float(row["time_s"]) * 1.02
        assert float(row["r_alloc"]) == pytest.approx((float(row["t_comp"]) + float(row["t_comm"])) / parts, abs=1e-3)
    test = json.loads((unbroken / "test.json").read_text())
    best = max(rows, key=lambda row: (float(row["val_f1"]), -float(row["val_loss"])))
    assert str(test["epoch"]) == best["epoch"]
    assert test["samples"] == 12
    assert np.sum(test["confusion"]) == 12
    names = {path.name for path in (unbroken / "checkpoints").iterdir()}
    pairs = {f"step-{step:08d}{kind}.safetensors" for step in (8, 12) for kind in ("", ".state")}
    assert names == pairs | {"last.safetensors", "best.safetensors"}
    assert {"config.toml", "metrics.jsonl", "log-rank0.jsonl", "tensorboard"} <= {p.name for p in unbroken.iterdir()}


def test_checkpoints_hold_torch_names_and_layouts(unbroken):
    state = load_file(unbroken / "checkpoints" / "last.safetensors")
    assert state["conv1.weight"].shape == (4, 1, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (8, 4, 1, 1)
    assert state["layer1.0.bn1.running_mean"].shape == (4,)
    assert int(state["bn1.num_batches_tracked"]) == 12


def test_torch_loads_a_checkpoint_strictly(unbroken):
    """The trainer's file in torch's own model gives our results."""
    torch = pytest.importorskip("torch", reason="torch reads the checkpoint")
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    import torch_models

    state = load_file(unbroken / "checkpoints" / "last.safetensors")
    twin = torch_models.build("resnet18", classes=3, channels=1, stem="small", width=4).eval()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    graph = models.build("resnet18", classes=3, channels=1, image_size=16, stem="small", width=4)
    nn.Parameters(graph)
    nn.checkpoint.load_state_dict(graph, state)
    x = np.random.default_rng(0).standard_normal((4, 16, 16, 1), dtype=np.float32)
    (ours,), _ = graph.forward(x, context=nn.Context(train=False))
    with torch.inference_mode():
        theirs = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("step", [5, 8, 11])
def test_killed_and_resumed_equals_unbroken(tmp_path, monkeypatch, unbroken, step):
    with monkeypatch.context() as patch:
        _kill_at(patch, step)
        with pytest.raises(Killed):
            tiny.train("--out", tmp_path)
    assert tiny.train("--out", tmp_path, "--resume") == 0
    tiny.assert_same(tiny.state(tmp_path), tiny.state(unbroken))


@pytest.mark.parametrize("step", [1, 4, 6])
def test_stopped_inside_an_epoch_and_resumed_equals_unbroken(tmp_path, monkeypatch, unbroken, step):
    original = trainer_module.Trainer._step

    def signalled(self, *args):
        if self.position.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_step", signalled)
        assert tiny.train("--out", tmp_path) == 85
    position = json.loads(str(tiny.state(tmp_path)["position"]))
    assert position["step"] == step + 1
    assert tiny.train("--out", tmp_path, "--resume") == 0
    tiny.assert_same(tiny.state(tmp_path), tiny.state(unbroken))


def test_stopped_while_validating_and_resumed_equals_unbroken(tmp_path, monkeypatch, unbroken):
    original = trainer_module.Trainer.validate

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "validate", signalled)
        assert tiny.train("--out", tmp_path) == 85
    assert tiny.train("--out", tmp_path, "--resume") == 0
    tiny.assert_same(tiny.state(tmp_path), tiny.state(unbroken))


def test_max_steps_inside_an_epoch_can_be_extended(tmp_path, unbroken):
    assert tiny.train("--out", tmp_path, "--max-steps", 6) == 0
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[-1]["step"] == "6"
    assert tiny.train("--out", tmp_path, "--resume", "--max-steps", 12) == 0
    mine, other = tiny.state(tmp_path), tiny.state(unbroken)
    for name in mine:
        if name not in ("position", "metrics"):  # the extra look at the validation split may have found a better best
            np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_epochs_can_be_extended_and_a_finished_run_does_nothing(tmp_path, unbroken, capsys):
    flags = ("--out", tmp_path, "--schedule", "constant")
    assert tiny.train(*flags, "--epochs", 1) == 0
    capsys.readouterr()
    assert tiny.train(*flags, "--epochs", 1, "--resume") == 0
    assert "the end of epoch 1, nothing left to train" in capsys.readouterr().out
    assert tiny.train(*flags, "--epochs", 2, "--resume") == 0
    assert "resumed at epoch 2 after 0 of 4 steps: step 4, lr 0.02, best so far epoch 1" in capsys.readouterr().out
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, unbroken, capsys):
    with monkeypatch.context() as patch:
        _kill_at(patch, 11)
        with pytest.raises(Killed):
            tiny.train("--out", tmp_path)
    path = tmp_path / "checkpoints" / "step-00000008.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 0x10
    path.write_bytes(damaged)
    capsys.readouterr()
    assert tiny.train("--out", tmp_path, "--resume") == 0
    captured = capsys.readouterr()
    assert "checkpoint not usable, took the one before: step-00000008.safetensors" in captured.err
    assert "resumed at epoch 2 after 0 of 4 steps: step 4" in captured.out
    tiny.assert_same(tiny.state(tmp_path), tiny.state(unbroken))


def test_no_good_checkpoint_is_an_error_not_a_new_start(tmp_path, capsys):
    assert tiny.train("--out", tmp_path, "--epochs", 1) == 0
    for path in (tmp_path / "checkpoints").glob("step-*"):
        path.write_bytes(b"nothing")
    assert tiny.train("--out", tmp_path, "--epochs", 2, "--resume") == 1
    assert "no good checkpoint in" in capsys.readouterr().err


def test_resume_of_another_model_is_refused(tmp_path, capsys):
    assert tiny.train("--out", tmp_path, "--epochs", 1) == 0
    assert tiny.train("--out", tmp_path, "--epochs", 2, "--resume", "--width", 5) == 1
    assert "cannot resume from" in capsys.readouterr().err


def test_resume_without_a_checkpoint_says_so(tmp_path, capsys):
    assert tiny.train("--out", tmp_path, "--epochs", 1, "--resume") == 0
    assert "no checkpoint of a run in" in capsys.readouterr().out


def test_stale_temporary_files_are_removed(tmp_path):
    stale = tmp_path / "checkpoints" / ".step-00000004.safetensors.abc123.tmp"
    stale.parent.mkdir()
    stale.write_bytes(b"x")
    folders.make_writable(tmp_path)
    assert not stale.exists()


def test_plateau_and_early_stopping_survive_a_resume(tmp_path, monkeypatch):
    flags = (
        "--schedule",
        "plateau",
        "--patience",
        0,
        "--gamma",
        0.5,
        "--epochs",
        6,
        "--early-stopping",
        4,
        "--lr",
        0.3,
    )
    assert tiny.train("--out", tmp_path / "a", *flags) == 0
    with monkeypatch.context() as patch:
        _kill_at(patch, 14)
        with pytest.raises(Killed):
            tiny.train("--out", tmp_path / "b", *flags)
    assert tiny.train("--out", tmp_path / "b", *flags, "--resume") == 0
    tiny.assert_same(tiny.state(tmp_path / "a"), tiny.state(tmp_path / "b"))


def test_adam_resumes_bit_for_bit(tmp_path, monkeypatch):
    flags = ("--optimizer", "adamw", "--lr", 0.001, "--warmup-epochs", 1, "--epochs", 2, "--clip-norm", 0.5)
    assert tiny.train("--out", tmp_path / "a", *flags) == 0
    with monkeypatch.context() as patch:
        _kill_at(patch, 6)
        with pytest.raises(Killed):
            tiny.train("--out", tmp_path / "b", *flags)
    assert tiny.train("--out", tmp_path / "b", *flags, "--resume") == 0
    tiny.assert_same(tiny.state(tmp_path / "a"), tiny.state(tmp_path / "b"))


@pytest.mark.timeout(3 * tiny.PATIENCE)
@pytest.mark.parametrize("norm", ["--sync-batchnorm", "--no-sync-batchnorm"])
def test_two_ranks_killed_while_they_train_resume_bit_for_bit(tmp_path, norm):
    """SIGKILL to one rank at a moment that nobody chose; the statistics of the ranks differ without synchronisation."""
    flags = (norm, "--epochs", 12, "--data", "phantom:size=16,samples=96")
    assert tiny.launch(2, "--out", tmp_path / "a", *flags).returncode == 0
    process = subprocess.Popen(tiny.command(2, "--out", tmp_path / "b", *flags), env=tiny.environment())
    log = tmp_path / "b" / "log-rank1.jsonl"
    wanted = 2
    deadline = time.monotonic() + tiny.PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"epoch"') > wanted:
            break
        time.sleep(0.005)
    pid = json.loads(log.read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=tiny.PATIENCE) != 0
    done = tiny.launch(2, "--out", tmp_path / "b", *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed at epoch" in done.stdout
    tiny.assert_same(tiny.state(tmp_path / "a"), tiny.state(tmp_path / "b"))


@pytest.mark.timeout(3 * tiny.PATIENCE)
def test_reproducible_runs_resume_bit_for_bit_on_another_number_of_ranks(tmp_path):
    """One rank unbroken; and two ranks, stopped in the middle of the second epoch, gone on with by three."""
    flags = ("--reproducible", "--epochs", 3)
    assert tiny.launch(1, "--out", tmp_path / "a", *flags).returncode == 0
    done = tiny.launch(2, "--out", tmp_path / "b", *flags, "--max-steps", 6)
    assert done.returncode == 0, done.stderr
    done = tiny.launch(3, "--out", tmp_path / "b", *flags, "--max-steps", 12, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed on 3 ranks after 2: same batches, bit for bit" in done.stderr
    weights = [load_file(tmp_path / run / "checkpoints" / "last.safetensors") for run in "ab"]
    tiny.assert_same(*weights)
