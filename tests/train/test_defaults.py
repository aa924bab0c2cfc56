"""What is left to the task is filled in, and what was asked for stays."""

import pytest

from medmpi.train.config import parse
from medmpi.train.job import settle
from medmpi.train.rate import Rate


@pytest.mark.parametrize(
    ("task", "flags", "optimizer", "batch_size"),
    [
        ("classification", (), "sgd", 64),
        ("segmentation", (), "adam", 16),
        ("segmentation", ("--nesterov",), "sgd", 16),
        ("segmentation", ("--optimizer=sgd", "--batch-size=3"), "sgd", 3),
        ("classification", ("--optimizer=adamw", "--batch-size=5"), "adamw", 5),
    ],
)
def test_optimizer_and_batch_size_go_by_the_task(task, flags, optimizer, batch_size):
    options = settle(parse(list(flags)), task, 1000)
    assert (options.optimizer, options.batch_size) == (optimizer, batch_size)


@pytest.mark.parametrize(
    ("flags", "samples", "batch_size", "epochs", "width"),
    [
        ((), 106, 8, 18, 32),
        ((), 1000, 16, 8, 32),
        ((), 3, 8, 60, 32),
        (("--epochs=5", "--batch-size=2", "--width=64"), 106, 2, 5, 64),
    ],
)
def test_segmentation_takes_enough_steps(flags, samples, batch_size, epochs, width):
    options = settle(parse(["--model=unet", *flags]), "segmentation", samples)
    assert (options.batch_size, options.epochs, options.width) == (batch_size, epochs, width)
    assert settle(parse([]), "classification", samples).epochs == 8


@pytest.mark.parametrize(
    ("flags", "steps"), [(("--epochs=8",), 10), (("--epochs=2",), 4), (("--epochs=8", "--warmup-epochs=0"), 0)]
)
def test_the_first_epoch_warms_up(flags, steps):
    rate = Rate(parse(["--schedule=constant", *flags]), 1.0, 10)
    rates = [rate(0, step) for step in range(10)] + [rate(1, 0)]
    assert sum(r < 1.0 for r in rates) == steps
    assert rates == sorted(rates)
