"""Ranks of unequal speed: shares follow it, and the trained network is the same, bit for bit."""

import numpy as np
import pytest
import tiny

from medmpi.train import slow
from medmpi.train.failure import Failure
from medmpi.train.job import build_job
from medmpi.train.progress import Silent
from medmpi.train.trainer import Hooks, Trainer


class _NoSaver:
    def save(self, *args, **named):
        pass


def _train(options, world):
    job = build_job(options, world)
    events, rows = [], []
    hooks = Hooks(
        lambda line: None, lambda line: None, lambda kind, **values: events.append((kind, values)),
        lambda row, scores: rows.append(row), Silent(),
    )  # fmt: skip
    Trainer(job, world, _NoSaver(), hooks).run()
    return job, [values["shares"] for kind, values in events if kind == "balance"], rows


@pytest.mark.mpi(min_size=2)
def test_a_slow_rank_gets_less_and_the_weights_are_those_of_one_rank(world, monkeypatch):
    monkeypatch.setenv(slow.VARIABLE, "1:4")
    flags = ("--data=phantom:size=16,samples=240", "--batch-size=48", "--epochs=6", "--width=8", "--reproducible")
    options = tiny.options(*flags, "--balance")
    job, changes, rows = _train(options, world)
    assert len(rows) == 6
    assert changes, "the shares were never moved"
    assert all(sum(shares) == 48 for shares in changes)
    assert min(slow for _, slow in changes) < 20, changes
    assert job.balance.shares(48).tolist() == changes[-1]
    monkeypatch.delenv(slow.VARIABLE)
    alone = world.split(world.rank)
    single, none, expected = _train(options, alone)
    assert not none
    np.testing.assert_array_equal(job.parameters.value, single.parameters.value)
    for row, other in zip(rows, expected, strict=True):
        assert row["val_loss"] == other["val_loss"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-12)
    alone.close()


@pytest.mark.mpi(min_size=2)
def test_balance_needs_statistics_over_all_ranks(world):
    with pytest.raises(Failure, match="--balance needs --sync-batchnorm"):
        build_job(tiny.options("--balance", "--no-sync-batchnorm"), world)


def test_the_drill_says_what_it_expects(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(slow.VARIABLE, "one:3")
    assert tiny.train("--out", tmp_path) == 2
    assert "MEDMPI_SLOW is 'one:3', expected RANK:FACTOR such as 1:3" in capsys.readouterr().err
