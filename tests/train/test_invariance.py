"""N ranks train the same network as one, and measure the same.

With --reproducible two free runs stay the same bit for bit. Without it rounding differs with the number of ranks in the
gradients' last digits. Among millions of activations one then lies within rounding of zero every few steps, its ReLU
switches, and from there two float32 runs drift apart, as two runs of any float32 program do. So there every step starts
from the serial run's weights, and is compared with the serial step.
"""

import dataclasses

import numpy as np
import pytest
import tiny

from medmpi.nn import checkpoint
from medmpi.train.evaluate import evaluate
from medmpi.train.job import build_job
from medmpi.train.progress import Silent
from medmpi.train.trainer import Hooks, Trainer


class _NoSaver:
    def save(self, *args, **named):
        pass


def _ignore(*args, **named):
    pass


def _train(options, world, follow=None):
    """The job after training, its gradient and weights of each step, and the rows of metrics.

    After each step the weights are set to those of `follow`, the record of another run.
    """
    job = build_job(options, world)
    rows, record = [], []
    hooks = Hooks(_ignore, _ignore, _ignore, lambda row, scores: rows.append((row, scores)), Silent())
    step = job.update.step

    def watched():
        gradients = {name: g.copy() for name, g in job.parameters.named_gradients()}
        step()
        record.append((gradients, job.parameters.value.copy()))
        if follow is not None:
            job.parameters.value[:] = follow[len(record) - 1][1]

    job.update.step = watched
    Trainer(job, world, _NoSaver(), hooks).run()
    return job, record, rows


def _difference(gradients, expected):
    """The largest difference over the parameters, each relative to its largest element."""
    return max(np.abs(gradients[n] - g).max() / (np.abs(g).max() + 1e-12) for n, g in expected.items())


def _compare(world, *flags):
    """Trains on all ranks together and on each alone, 20 steps of SGD at rate 0.01; shares of a batch are uneven."""
    options = tiny.options(
        "--data=phantom:size=16,samples=55", "--batch-size=11", "--epochs=4", "--width=16", "--lr=0.01", "--momentum=0",
        "--schedule=constant", *flags,
    )  # fmt: skip
    alone = world.split(world.rank)
    single, serial, expected_rows = _train(dataclasses.replace(options, replicas=None), alone)
    together, parallel, rows = _train(options, world, follow=serial)
    assert len(serial) == len(parallel) == 20
    differences = [_difference(a, b) for (a, _), (b, _) in zip(parallel, serial, strict=True)]
    assert differences[0] <= 1e-5
    assert np.median(differences) <= 1e-5
    assert np.quantile(differences, 0.8) <= 1e-3  # a ReLU switched
    other = checkpoint.state_dict(single.graph)
    assert len(rows) == len(expected_rows) == 4
    for (row, scores), (expected_row, expected_scores) in zip(rows, expected_rows, strict=True):
        assert row["step"] == expected_row["step"]
        assert row["train_loss"] == pytest.approx(expected_row["train_loss"], rel=1e-5)
        np.testing.assert_array_equal(scores.confusion, expected_scores.confusion)
        assert scores.loss == pytest.approx(expected_scores.loss, rel=1e-4)
    # the same weights on both sides: then evaluation must agree to the last bit
    checkpoint.load_state_dict(together.graph, other)
    a, b = evaluate(together, "test", world), evaluate(single, "test", alone)
    np.testing.assert_array_equal(a.confusion, b.confusion)
    assert a.samples == b.samples == len(together.dataset.splits["test"])
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    alone.close()


def _compare_exactly(world, *flags):
    """Trains on all ranks together and on each alone, 20 steps of SGD at rate 0.01, each on its own."""
    options = tiny.options(
        "--data=phantom:size=16,samples=55", "--batch-size=11", "--epochs=4", "--width=16", "--lr=0.01",
        "--schedule=constant", "--reproducible", *flags,
    )  # fmt: skip
    alone = world.split(world.rank)
    single, serial, expected_rows = _train(options, alone)
    together, parallel, rows = _train(options, world)
    assert len(serial) == len(parallel) == 20
    for (gradients, weights), (expected_gradients, expected_weights) in zip(parallel, serial, strict=True):
        for name, gradient in expected_gradients.items():
            np.testing.assert_array_equal(gradients[name], gradient, name)
        np.testing.assert_array_equal(weights, expected_weights)
    for name, buffer in checkpoint.state_dict(single.graph).items():
        np.testing.assert_array_equal(checkpoint.state_dict(together.graph)[name], buffer, name)
    for (_, scores), (_, expected_scores) in zip(rows, expected_rows, strict=True):
        assert scores.loss == expected_scores.loss
        np.testing.assert_array_equal(scores.confusion, expected_scores.confusion)
    alone.close()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("extra", [(), ("--class-weights=balanced", "--clip-norm=1", "--augment=rotate,color")])
def test_two_ranks_train_exactly_as_one(world, extra):
    _compare_exactly(world, *extra)


@pytest.mark.mpi(min_size=2)
def test_parts_of_several_samples_are_shared_out_whole(world):
    _compare_exactly(world, "--data=phantom:size=16,samples=350", "--batch-size=70", "--width=4")


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("model", ["mini_xception", "unet"])
def test_three_ranks_train_exactly_as_one(world, model):
    task = ("--task=segmentation",) if model == "unet" else ()
    _compare_exactly(world, f"--model={model}", "--stem=auto", "--width=8", *task)


@pytest.mark.mpi(min_size=4)
def test_four_ranks_train_exactly_as_one(world):
    _compare_exactly(world)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("extra", [(), ("--class-weights=balanced", "--clip-norm=1", "--augment=rotate,color")])
def test_two_ranks_train_as_one(world, extra):
    _compare(world, *extra)


@pytest.mark.mpi(min_size=3)
def test_three_ranks_train_as_one(world):
    _compare(world)


@pytest.mark.mpi(min_size=4)
def test_four_ranks_train_as_one(world):
    _compare(world)


@pytest.mark.mpi(min_size=3)
def test_segmentation_on_three_ranks_trains_as_one(world):
    _compare(world, "--model=unet", "--task=segmentation", "--stem=auto", "--class-weights=balanced")


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("samples", [4, 5, 7])
def test_every_sample_is_evaluated_once(world, samples):
    """Sizes that do not divide by the ranks, and some ranks with nothing at all."""
    options = tiny.options(f"--data=phantom:size=16,samples={4 * samples}", "--batch-size=3")
    job = build_job(options, world)
    alone = world.split(world.rank)
    single = build_job(options, alone)
    for split in ("train", "val", "test"):
        a, b = evaluate(job, split, world), evaluate(single, split, alone)
        assert a.samples == b.samples == len(job.dataset.splits[split])
        np.testing.assert_array_equal(a.confusion, b.confusion)
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.auc == pytest.approx(b.auc, abs=1e-12)
    alone.close()
