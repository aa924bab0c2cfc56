"""Trained models evaluated alone and together, on one rank and on two."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from medmpi import models, nn
from medmpi.cli import main
from medmpi.data import normalise, open_dataset
from medmpi.train import metrics

DATA = "phantom:size=16,samples=120"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed; the data of both are those of seed 0."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for seed in (0, 1):
        out = folder / f"seed{seed}"
        assert tiny.train(f"--data={DATA}", "--epochs=2", "--seed", seed, "--out", out) == 0
        found.append(str(out))
    return found


def results(tmp_path, *words):
    out = tmp_path / "scores.json"
    assert main(["evaluate", *words, "--threads=1", "--out", str(out)]) == 0
    return json.loads(out.read_text())["results"]


def test_one_run_scores_as_its_own_test_did(tmp_path, runs):
    (name,) = found = results(tmp_path, runs[0])
    test = json.loads(Path(runs[0], "test.json").read_text())
    assert found[name]["confusion"] == test["confusion"]
    assert found[name]["loss"] == pytest.approx(test["loss"], rel=1e-5)
    assert found[name]["auc"] == pytest.approx(test["auc"], abs=1e-9)
    other = results(tmp_path, runs[0], "--split=val", "--which=last")
    assert other[name]["samples"] == 30


def test_an_ensemble_averages_probabilities(tmp_path, runs):
    found = results(tmp_path, *runs, "--batch-size=7")
    assert list(found) == [*runs, "ensemble of 2 models"]
    split = open_dataset(DATA).splits["test"]
    images, labels = split.read(np.arange(len(split)))
    total = 0
    for run in runs:
        saved = models.load(run)
        mean, std = (np.asarray(v, np.float32) for v in (saved.spec.mean, saved.spec.std))
        (logits,), _ = saved.graph.forward(normalise(images, mean, std), context=nn.Context(train=False))
        e = np.exp(logits.astype(np.float64))
        total = total + e / e.sum(1, keepdims=True)
    expected = metrics.classification(labels, np.log(total / 2))
    assert found["ensemble of 2 models"]["confusion"] == expected.confusion.tolist()
    assert found["ensemble of 2 models"]["loss"] == pytest.approx(expected.loss, rel=1e-6)


@pytest.mark.mpi_skip
def test_two_ranks_score_as_one(tmp_path, runs):
    one = results(tmp_path, *runs)
    words = ["evaluate", *runs, "--threads=1", "--batch-size=4", "--out", tmp_path / "two.json"]
    done = tiny.launch(2, *words, program="-m medmpi.cli", tiny=False)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())["results"]
    for name, scores in one.items():
        assert two[name]["confusion"] == scores["confusion"]
        assert two[name]["loss"] == pytest.approx(scores["loss"], rel=1e-6)


def test_weights_are_averaged(tmp_path, runs):
    same = results(tmp_path, runs[0], runs[0], "--fuse=weights")["mean weights of 2 models"]
    assert same["confusion"] == results(tmp_path, runs[0])[runs[0]]["confusion"]


def test_masks(tmp_path):
    flags = ("--data=phantom:size=32,samples=24", "--task=segmentation", "--model=unet", "--stem=auto", "--epochs=1")
    assert tiny.train(*flags, "--batch-size=8", "--out", tmp_path / "run") == 0
    run = str(tmp_path / "run")
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    found = results(tmp_path, run, run)
    assert found[run]["confusion"] == test["confusion"] == found["ensemble of 2 models"]["confusion"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["/nowhere"], 1, "/nowhere does not exist"),
        (["RUN", "--data=phantom:size=16,classes=2"], 2, "has classes normal, malignant and 1 channels"),
        (["RUN", "--data=npz:/nowhere.npz"], 3, "/nowhere.npz"),
        (["RUN", "--fuse=weights"], 2, "--fuse weights needs two models or more"),
        (["RUN", "--batch-size=0"], 2, "--batch-size is 0, expected more than 0"),
        (["RUN", "--splt=val"], 2, "unrecognized arguments: --splt=val"),
    ],
)
def test_refusals(runs, capsys, words, code, says):
    assert main(["evaluate", *(runs[0] if word == "RUN" else word for word in words)]) == code
    assert says in capsys.readouterr().err
