"""Local updates: averaged after each they are ordinary training; after several the ranks still end with one model."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from test_adapt import plain_network

from medmpi import kernels as K
from medmpi import nn
from medmpi.train import job as job_module
from medmpi.train.config import ConfigError
from medmpi.train.failure import Failure
from medmpi.train.job import build_job
from medmpi.train.local import LocalUpdates
from medmpi.train.progress import Silent
from medmpi.train.trainer import Hooks, Trainer


class _NoSaver:
    def save(self, *args, **named):
        pass


def _train(world, *flags):
    options = tiny.options("--schedule=constant", "--warmup-epochs=0", *flags)
    job = build_job(options, world)
    rows = []
    hooks = Hooks(
        lambda line: None, lambda line: None, lambda *args, **named: None, lambda row, scores: rows.append(row),
        Silent(),
    )  # fmt: skip
    Trainer(job, world, _NoSaver(), hooks).run()
    return job, rows


@pytest.mark.mpi(min_size=2)
def test_averaging_after_each_update_is_summing_gradients(world, monkeypatch):
    """For SGD with momentum and even shares, but for rounding."""
    monkeypatch.setattr(job_module.models, "build", plain_network)
    flags = ("--data=phantom:size=16,samples=48", "--batch-size=12", "--lr=0.01")
    summed, rows = _train(world, *flags, "--no-sync-batchnorm")
    local, other = _train(world, *flags, "--average-every=1")
    np.testing.assert_allclose(local.parameters.value, summed.parameters.value, rtol=1e-4, atol=1e-6)
    for row, expected in zip(other, rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


@pytest.mark.mpi(min_size=3)
def test_averaging_after_several_updates(world):
    """Eleven images on three ranks: shares and the last batch are uneven, and an epoch is no multiple of three."""
    flags = ("--data=phantom:size=16,samples=211", "--batch-size=11", "--epochs=6", "--average-every=3", "--lr=0.05")
    job, rows = _train(world, *flags)
    values = world.allgather(job.parameters.value.tobytes())
    assert len(set(values)) == 1, "the ranks' weights differ at the end of an epoch"
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    assert all(np.isfinite(row["train_loss"]) for row in rows)


@pytest.mark.mpi(min_size=2)
def test_a_rank_whose_gradients_are_never_finite_ends_the_run(world, monkeypatch):
    job = build_job(tiny.options("--average-every=2"), world)
    kept = job.parameters.value.copy()
    for i in range(5):
        job.local.update(np.nan if world.rank == 1 else 1.0, 6)
        assert job.local.average() == (i % 2 == 1)
    job.local.update(np.nan if world.rank == 1 else 1.0, 6)
    with pytest.raises(Failure, match="no finite gradient in 3 rounds of 2 updates"):
        job.local.average()
    np.testing.assert_allclose(job.parameters.value, kept, rtol=1e-6)


def test_a_local_run_saves_stops_and_resumes(tmp_path):
    flags = ("--average-every", 3, "--checkpoint-every", 2)
    done = tiny.launch(2, "--out", tmp_path / "a", *flags)
    assert done.returncode == 0, done.stderr
    done = tiny.launch(2, "--out", tmp_path / "b", *flags, "--epochs", 1, "--schedule=constant")
    assert done.returncode == 0, done.stderr
    done = tiny.launch(2, "--out", tmp_path / "b", *flags, "--epochs", 2, "--schedule=constant", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed at epoch 2 after 0 of 4 steps: step 4" in done.stdout


@pytest.mark.parametrize("flag", ["--reproducible", "--balance", "--stages=2", "--schedule=noise"])
def test_what_does_not_go_with_it(flag):
    with pytest.raises(ConfigError, match="does not go with --average-every"):
        tiny.options("--average-every=4", flag)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_and_momentum_become_the_mean_wherever_they_are(device):
    if device == "cuda" and not K.devices():
        pytest.skip(f"no CUDA device: {K.missing_device()}")
    graph = nn.Graph()
    graph.add("fc", nn.Linear(3, 2))
    parameters = nn.Parameters(graph, seed=1, device=device)
    optimizer = nn.SGD(parameters, lr=0.1, momentum=0.9)
    # another rank has 3 everywhere, after five updates
    other = SimpleNamespace(
        size=2,
        any=lambda *_: False,
        sum=lambda array, _: np.add(array, 3, out=array),
        allgather=lambda mine, _: [mine, 5],
    )
    local = LocalUpdates(other, parameters, optimizer, 2)
    before = K.to_host(parameters.value).copy()
    assert local.update(1.0, 4)
    assert not local.average()
    assert local.update(1.0, 4)
    assert local.average()
    np.testing.assert_array_equal(K.to_host(parameters.value), (before + 3) / 2)
    np.testing.assert_array_equal(
        K.to_host(graph["fc"].p["bias"]), (K.to_host(parameters.view(parameters.value, "fc.bias")))
    )
    assert (K.to_host(optimizer.momentum_buffer) == 1.5).all()
    assert optimizer.steps == 5
    assert local.meeting
