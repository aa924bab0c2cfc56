"""``medmpi plan`` and ``--parallel auto`` as a user starts them."""

import re

import numpy as np
import pytest
import tiny

from medmpi import models, nn
from medmpi.nn.measure import measure
from medmpi.train.config import read_toml

FLAGS = ("--data=phantom:size=16,samples=48", "--width=4", "--stem=small", "--batch-size=12")


def test_every_shape_is_predicted_and_run():
    done = tiny.launch(2, *FLAGS, "--verify", "--steps=2", "--extrapolate=64", program="-m medmpi.cli plan", tiny=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line for line in lines if re.match(r" *\d+ x \d+, \d+ micro-batch", line)]
    assert len(rows) >= 4
    assert all(re.search(r"\d +[+-]\d+\.\d%", row) for row in rows)
    assert any(re.match(r"accuracy of \d+ predictions: -?\d+\.\d+% on average", line) for line in lines)
    assert any(line.startswith("best for 2 ranks: --replicas") for line in lines)
    assert any(line.startswith("    64 ranks: batch 12") for line in lines)


def test_a_run_chooses_its_shape(tmp_path):
    done = tiny.launch(2, "--parallel=auto", "--epochs=1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    chosen = read_toml(tmp_path / "config.toml")
    assert chosen["parallel"] == "manual"
    assert chosen["replicas"] * chosen["stages"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "fast"], "--network is 'fast', expected microseconds,GB/s"),
        (["--steps", "0"], "must be above 0"),
        (["--model", "resnet81"], "did you mean 'resnet18'?"),
    ],
)
def test_wrong_flags(capsys, flags, message):
    from medmpi.cli.plan import main

    assert main([*FLAGS, *flags]) == 2
    assert message in capsys.readouterr().err


def test_measuring_leaves_the_graph_alone():
    graph = models.build("resnet18", classes=3, channels=1, image_size=16, width=4).fuse()
    parameters = nn.Parameters(graph, seed=1)
    before = nn.checkpoint.state_dict(graph)
    costs = measure(graph, (2, 16, 16, 1), rounds=1)
    assert [c.name for c in costs] == [node.name for node in graph.nodes]
    assert all(c.forward > 0 and c.backward > 0 for c in costs)
    assert sum(c.parameter_bytes for c in costs) == parameters.value.nbytes
    after = nn.checkpoint.state_dict(graph)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert np.shares_memory(graph["conv1"].p["weight"], parameters.value)
