"""Whole runs on grids of replicas and stages: the same training as on one rank, and checkpoints that fit any grid."""

import json
import os
import signal
import subprocess
import time

import grids
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from medmpi import models
from medmpi.train.evaluate import evaluate
from medmpi.train.failure import Failure
from medmpi.train.job import build_job
from medmpi.train.split import named_cuts

BASE = (
    "--data=phantom:size=16,samples=55", "--batch-size=11", "--epochs=4", "--width=8", "--lr=0.01", "--momentum=0",
    "--schedule=constant", "--clip-norm=1",
)  # fmt: skip


def _compare(world, *flags, shape, steps=20, tolerance=1e-5):
    """20 steps of SGD on the grid; each step starts from the serial run's weights (see test_invariance).

    Convolutions of tiles have other sizes, and their kernels another order of sums: their tolerance is wider.
    """
    alone = world.split(world.rank)
    single, serial, expected_rows = grids.train(tiny.options(*BASE, *flags), alone)
    together, split, rows = grids.train(tiny.options(*BASE, *flags, *shape), world, follow=serial)
    assert len(serial) == len(split) == steps
    off = [grids.differences(a, b) for (a, _), (b, _) in zip(split, serial, strict=True)]
    moved = [grids.differences(a, b) for (_, a), (_, b) in zip(split, serial, strict=True)]
    assert off[0] <= tolerance
    assert np.median(off) <= tolerance
    assert moved[-1] <= max(1e-4, max(off))  # where rounding switched a ReLU in one of the steps, the weights keep it
    for (row, scores), (expected_row, expected_scores) in zip(rows, expected_rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected_row["train_loss"], rel=1e-5)
        assert row["train_accuracy"] == pytest.approx(expected_row["train_accuracy"], abs=0.02)
        assert scores.loss == pytest.approx(expected_scores.loss, rel=1e-4)
    a, b = evaluate(together, "test", world), evaluate(single, "test", alone)
    assert a.samples == b.samples == len(together.dataset.splits["test"])
    assert a.loss == pytest.approx(b.loss, rel=1e-4)
    alone.close()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("model", ["resnet18", "mini_xception"])
def test_two_stages_train_as_one_rank(world, model):
    _compare(world, f"--model={model}", "--stem=auto", shape=("--stages=2", "--micro-batches=3"))


@pytest.mark.mpi(min_size=3)
def test_frozen_layers_in_stages_train_as_one_rank(world):
    """The first stage has nothing to learn, and the last one nothing but the head."""
    freeze = "--freeze=conv1,bn1,layer1,layer3.1,layer4"
    _compare(world, freeze, shape=("--stages=3", "--cuts=layer2.0.conv1,layer3.1.conv1", "--micro-batches=2"))


@pytest.mark.mpi(min_size=4)
def test_two_replicas_of_two_stages_train_as_one_rank(world):
    _compare(world, shape=("--replicas=2", "--stages=2"))


@pytest.mark.mpi(min_size=3)
def test_segmentation_in_three_stages_trains_as_one_rank(world):
    flags = ("--model=unet", "--task=segmentation", "--stem=auto", "--augment=flip,rotate")
    _compare(world, *flags, shape=("--stages=3", "--micro-batches=2", "--pipeline=gpipe"))


@pytest.mark.mpi(min_size=2)
def test_tiles_train_as_one_rank(world):
    _compare(world, shape=("--tiles=2", "--micro-batches=2"), tolerance=3e-5)


@pytest.mark.mpi(min_size=4)
def test_tiles_of_stages_train_a_segmentation_as_one_rank(world):
    flags = ("--model=unet", "--task=segmentation", "--stem=auto", "--class-weights=balanced", "--epochs=2")
    _compare(world, *flags, "--max-steps=10", shape=("--tiles=2", "--stages=2"), steps=10, tolerance=3e-5)


@pytest.mark.mpi(min_size=4)
def test_reproducible_grids_train_exactly_as_one_rank(world):
    flags = (*BASE, "--reproducible", "--epochs=2", "--momentum=0.9", "--dropout=0.3", "--model=inception_v1")
    flags = (*flags[:-2], "--width=8")
    alone = world.split(world.rank)
    _, serial, _ = grids.train(tiny.options(*flags), alone)
    for shape in (("--stages=2", "--micro-batches=2"), ("--stages=4",)):
        _, split, _ = grids.train(tiny.options(*flags, *shape), world)
        for (gradients, weights), (expected, expected_weights) in zip(split, serial, strict=True):
            for name in gradients:
                np.testing.assert_array_equal(gradients[name], expected[name], name)
                np.testing.assert_array_equal(weights[name], expected_weights[name], name)
    alone.close()


@pytest.mark.mpi(min_size=2)
def test_a_bad_image_is_named_by_the_stage_that_has_it(world):
    """The update is left out on all stages alike."""
    job = build_job(tiny.options(*BASE, "--stages=2"), world)
    before = job.parameters.value.copy()
    warnings = []
    hooks = grids.Hooks(print, warnings.append, grids._ignore, grids._ignore, grids.Silent())
    trainer = grids.Trainer(job, world, grids.NoSaver(), hooks)
    ids = np.arange(11)
    with trainer_feed(job, ids) as feed:
        batch = next(iter(feed))
    if job.grid.first:
        batch.images[3, 5, 5, 0] = np.nan
    loss, _ = trainer._step(batch, ids, 0, job.adapt.place([len(ids)], 0, 0, 1))
    assert np.isnan(loss)
    np.testing.assert_array_equal(job.parameters.value, before)
    assert warnings == ["step 1: gradient is not finite (rank 0, samples 3, in the input); update left out"]


def trainer_feed(job, ids):
    """One batch as the trainer gets it."""
    from medmpi.train.feed import feed

    return feed(job, job.dataset.splits["train"], [ids])


@pytest.mark.timeout(3 * tiny.PATIENCE)
def test_a_killed_run_goes_on_in_other_shapes(tmp_path):
    """One rank unbroken; and two stages, killed at a moment that nobody chose, gone on with by 2x2 and then by 3."""
    flags = ("--reproducible", "--epochs", 10)
    assert tiny.launch(1, "--out", tmp_path / "a", *flags).returncode == 0
    out = ("--out", tmp_path / "b", *flags)
    process = subprocess.Popen(tiny.command(2, *out, "--stages", 2), env=tiny.environment())
    log = tmp_path / "b" / "log-rank1.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"epoch"') > 2:
            break
        time.sleep(0.005)
    os.kill(json.loads(log.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    assert process.wait(timeout=tiny.PATIENCE) != 0
    done = tiny.launch(4, *out, "--stages", 2, "--replicas", 2, "--max-steps", 30, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed on 4 ranks (2 replicas x 2 stages) after 2 (2 stages): same batches, bit for bit" in done.stderr
    done = tiny.launch(3, *out, "--stages", 1, "--replicas", 3, "--max-steps", 40, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed on 3 ranks after 4 (2 replicas x 2 stages): same batches, bit for bit" in done.stderr
    weights = [load_file(tmp_path / run / "checkpoints" / "last.safetensors") for run in "ab"]
    tiny.assert_same(*weights)


@pytest.mark.parametrize(
    ("text", "stages", "message"),
    [
        ("layer2.0.conv1,layer3.0.conv1", 3, None),
        ("7", 2, None),
        ("layer2.0.conv", 2, "'layer2.0.conv' is no layer of the model.*did you mean 'layer2.0.conv"),
        ("0", 2, "'0' is no layer"),
        ("5", 3, "has 1 layers, expected 2 for --stages 3"),
        ("9,5", 3, "expected layers in the order of the model"),
        ("conv1", 2, "not the first one"),
    ],
)
def test_cuts_by_hand(text, stages, message):
    model = models.build("resnet18", classes=3, channels=1, image_size=16, width=4).fuse()
    if message is None:
        cuts = named_cuts(text, model, stages)
        assert len(model.split(cuts)) == stages
        return
    with pytest.raises(Failure, match=message) as failure:
        named_cuts(text, model, stages)
    assert failure.value.code == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "2"], "--stages 2 does not divide 1 ranks, expected a multiple of 2"),
        (["--cuts", "layer2.0.conv1"], "--cuts is layer2.0.conv1 but --stages is 1"),
        (["--pipeline", "zigzag"], "--pipeline is 'zigzag', expected one of 1f1b, gpipe"),
        (["--tiles", "2"], "--tiles 2 does not divide 1 ranks"),
        (["--tiles", "2", "--reproducible"], "--reproducible sums by whole images"),
        (["--tiles", "2", "--no-sync-batchnorm"], "--tiles needs --sync-batchnorm"),
        (["--micro-batches", "-1"], "--micro-batches is -1, expected a whole number at least 0"),
    ],
)
def test_wrong_shapes_are_usage_errors(tmp_path, capsys, flags, message):
    assert tiny.train("--out", tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
