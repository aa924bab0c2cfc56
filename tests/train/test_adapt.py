"""Updates of several batches, batches that grow, rates that follow feedback; all of it resumes bit for bit."""

import numpy as np
import pytest
import tiny

from medmpi import models, nn
from medmpi.train import job as job_module
from medmpi.train.adapt import Adaptation
from medmpi.train.config import ConfigError, parse
from medmpi.train.job import build_job
from medmpi.train.log import read_metrics
from medmpi.train.rate import Rate


def options(*flags):
    return parse([*tiny.FLAGS, *flags])


def plain_network(name, *, classes, channels, **ignored):
    """A small network without batch normalisation."""
    g = nn.Graph()
    x = g.add("conv", nn.Conv2d(channels, 8, 3, padding=1), 0)
    x = g.add("relu", nn.ReLU(), x)
    x = g.add("pool", nn.GlobalAvgPool2d(), x)
    x = g.add("flatten", nn.Flatten(), x)
    g.add("fc", nn.Linear(8, classes), x)
    return g


def test_two_small_batches_make_the_update_of_a_large_one(tmp_path, monkeypatch):
    """A network without batch normalisation: then only rounding differs, the last and smaller batch included."""
    monkeypatch.setattr(models, "build", plain_network)
    monkeypatch.setattr(job_module.models, "build", plain_network)
    weights = []
    for name, flags in (("one", ["--batch-size=16"]), ("two", ["--batch-size=8", "--accumulate=2"])):
        flags += ["--data=phantom:size=16,samples=44", "--schedule=constant", "--warmup-epochs=0"]
        assert tiny.train("--lr=0.1", "--out", tmp_path / name, *flags) == 0
        state = tiny.state(tmp_path / name)
        weights.append({k: v for k, v in state.items() if not k.startswith(("state/", "position", "metrics"))})
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=2e-6, err_msg=name)
    a, b = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for row, other in zip(a, b, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-3)
        assert row["update_images"] == other["update_images"] == "16"


def test_places_of_batches_in_updates():
    adapt = Adaptation(options("--batch-size=8", "--accumulate=3"), 4)
    sizes = [8, 8, 8, 8, 5]
    places = [adapt.place(sizes, i, 0, 5) for i in range(5)]
    assert [p.begins for p in places] == [True, False, False, True, False]
    assert [p.ends for p in places] == [False, False, True, False, True]
    assert [p.images for p in places] == [24, 24, 24, 13, 13]
    assert adapt.place(sizes, 1, 1, 5).begins, "resumed within what was an update"
    assert adapt.place(sizes, 3, 0, 4).ends, "cut off by --max-steps"


def test_batches_grow_after_epochs_without_progress():
    settings = options("--batch-size=8", "--grow-batch=plateau", "--patience=1", "--max-accumulate=4")
    adapt = Adaptation(settings, 4)
    said = [adapt.observe(loss) for loss in (1.0, 0.9, 0.9, 0.95, 0.91, 0.9, 0.9, 0.9)]
    assert [i for i, line in enumerate(said) if line] == [3, 5]
    assert said[3] == "no progress for 2 epochs: 2 batches, 16 images per update from now on"
    assert adapt.accumulate == 4


def test_batches_grow_and_the_rate_falls_with_noise():
    settings = options("--batch-size=8", "--grow-batch=noise", "--schedule=noise")
    adapt = Adaptation(settings, 2000)
    random = np.random.default_rng(0)
    signal = np.full(2000, 1 / np.sqrt(2000))

    def updates(noise):
        for _ in range(60):
            spread = random.standard_normal(2000) * np.sqrt(noise / 8 / 2000)
            adapt.updated((signal + spread).astype(np.float32), warm=True)

    updates(4.0)
    assert adapt.observe(1.0) is None
    assert adapt.gain() > 0.8
    updates(200.0)
    assert adapt.gain() < 0.3
    assert "the gradients' noise scale is" in (adapt.observe(1.0) or "")
    assert adapt.batch == 16
    other = Adaptation(settings, 2000)
    other.load_state_dict(adapt.state_dict(), adapt.arrays())
    assert (other.batch, other.gain(), other.noise_scale) == (adapt.batch, adapt.gain(), adapt.noise_scale)


def test_rates_scale_with_the_batch_and_warm_up_from_the_unscaled_one():
    options = tiny.options("--lr=0.1", "--batch-size=512", "--warmup-epochs=1", "--schedule=constant")
    rate = Rate(options, 0.8, 10, 0.1)
    assert rate(0, 0) == pytest.approx(0.1 + 0.7 / 11)
    assert rate(0, 9) == pytest.approx(0.1 + 0.7 * 10 / 11)
    assert rate(1, 0) == pytest.approx(0.8)


@pytest.mark.mpi(min_size=2)
def test_the_scaled_rate_counts_all_images_of_an_update(world):
    options = tiny.options("--lr=0.02", "--batch-size=12", "--accumulate=4", "--scale-lr-from=24")
    assert build_job(options, world).base_lr == pytest.approx(0.04)


def test_feedback_survives_a_resume_bit_for_bit(tmp_path):
    flags = ("--grow-batch=noise", "--schedule=noise", "--epochs=5", "--max-accumulate=4", "--patience=0")
    assert tiny.train("--out", tmp_path / "a", *flags) == 0
    assert tiny.train("--out", tmp_path / "b", *flags, "--max-steps", 8) == 0
    assert tiny.train("--out", tmp_path / "b", *flags, "--resume", "--max-steps", 20) == 0
    tiny.assert_same(tiny.state(tmp_path / "a"), tiny.state(tmp_path / "b"))
    rows = read_metrics(tmp_path / "a" / "metrics.csv")
    assert all(float(row["noise_scale"]) > 0 for row in rows[2:])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--grow-batch=noise", "--max-accumulate=1"], "--max-accumulate is 1, expected at least twice --accumulate 1"),
        (["--schedule=noise", "--stages=2"], "expected --stages 1"),
        (["--accumulate=0"], "--accumulate is 0, expected a whole number at least 1"),
    ],
)
def test_settings_that_cannot_be(flags, says):
    with pytest.raises(ConfigError, match=says):
        tiny.options(*flags)
