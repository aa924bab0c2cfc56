"""Batches in the order given, whichever thread makes them; errors, early ends and waiting."""

import threading
import time

import numpy as np
import pytest

from medmpi import kernels
from medmpi.data import DataError, Loader, Split, epoch_order, global_batches, normalise
from medmpi.data.source import ArraySource


class SlowSource(ArraySource):
    """Takes a time that depends on the batch, so that threads finish out of order, and fails where told."""

    def __init__(self, n, *, fail_at=None, seconds=0.002):
        images = np.arange(n * 4, dtype=np.uint32).astype(np.uint8).reshape(n, 2, 2, 1)
        super().__init__(images, np.arange(n, dtype=np.int64))
        self.fail_at, self.seconds = fail_at, seconds

    def read(self, positions):
        time.sleep(self.seconds * (positions[0] % 3))
        if self.fail_at is not None and self.fail_at in positions:
            raise DataError("scan7.png", "broken", "fetch it again")
        return super().read(positions)


def _split(source):
    n = len(source)
    return Split("train", source, np.arange(n, dtype=np.int64), np.arange(n, dtype=np.int64))


def _loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("medmpi-loader")]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_order_and_values_do_not_depend_on_threads(threads, depth):
    split = _split(SlowSource(50))
    batches = global_batches(epoch_order(50, 3, 1), 7)
    loader = Loader(split, batches, threads=threads, depth=depth)
    assert len(loader) == 8
    count = 0
    for ids, batch in zip(batches, loader, strict=True):
        assert np.array_equal(batch.ids, ids)
        assert np.array_equal(batch.labels, ids)
        assert batch.images.dtype == np.float32
        assert np.allclose(batch.images, split.source.images[ids] / 255.0, atol=1e-7)
        count += len(ids)
    assert count == 50
    assert not _loader_threads()
    assert loader.wait_seconds > 0
    assert loader.busy_seconds > 0


def test_threads_run_at_most_depth_ahead():
    made = []
    split = _split(SlowSource(40, seconds=0))

    def transform(images, masks, ids):
        made.append(int(ids[0]))
        return images, masks

    with Loader(split, global_batches(np.arange(40), 2), transform=transform, threads=2, depth=3) as loader:
        time.sleep(0.2)
        assert sorted(made) == [0, 2, 4]
        next(loader)
        time.sleep(0.2)
        assert sorted(made) == [0, 2, 4, 6]
    assert not _loader_threads()


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_an_error_surfaces_in_its_place_with_the_file(threads):
    split = _split(SlowSource(30, fail_at=13))
    loader = Loader(split, global_batches(np.arange(30), 5), threads=threads)
    assert [next(loader).ids[0], next(loader).ids[0]] == [0, 5]
    with pytest.raises(DataError, match=r"^scan7.png: broken; fetch it again") as caught:
        next(loader)
    assert "batch 2 of the train split" in caught.value.__notes__[0]
    assert not _loader_threads()
    with pytest.raises(StopIteration):
        next(loader)


def test_stopping_early_joins_quickly():
    split = _split(SlowSource(400, seconds=0.01))
    with Loader(split, global_batches(np.arange(400), 2), threads=3) as loader:
        next(loader)
        start = time.perf_counter()
    assert time.perf_counter() - start < 1.0
    assert not _loader_threads()
    loader.close()


def test_close_from_another_thread_wakes_the_consumer():
    gate = threading.Event()

    class Stuck(ArraySource):
        def read(self, positions):
            gate.wait(10)
            return super().read(positions)

    source = Stuck(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int64))
    loader = Loader(_split(source), [np.arange(4)], threads=1)
    closer = threading.Timer(0.1, loader.close)
    closer.start()
    # close() waits for the thread in the source; the consumer must be woken before that.
    assert list(loader) == []
    gate.set()
    closer.join(5)
    assert not _loader_threads()


def test_a_forgotten_loader_ends_its_threads():
    for batch in Loader(_split(SlowSource(400)), global_batches(np.arange(400), 2), threads=2):
        assert batch.ids[0] == 0
        break
    deadline = time.perf_counter() + 5
    while _loader_threads() and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not _loader_threads()


def test_waiting_is_measured():
    split = _split(SlowSource(8, seconds=0.1))
    with Loader(split, [np.array([2]), np.array([5])], threads=1, depth=1) as loader:
        list(loader)
    assert 0.3 <= loader.wait_seconds < 2
    assert loader.busy_seconds >= 0.4 - 1e-3


def test_kernels_in_loader_threads_run_on_one_thread():
    seen = []

    def transform(images, masks, ids):
        seen.append(kernels.threads())
        return images, masks

    list(Loader(_split(SlowSource(4)), [np.arange(4)], transform=transform, threads=1))
    assert seen == [1]


def test_empty_work():
    assert list(Loader(_split(SlowSource(4)), [], threads=2)) == []
    (batch,) = Loader(
        _split(ArraySource(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int64))),
        [np.empty(0, np.int64)],
        transform=None,
        threads=0,
    )
    assert batch.images.shape == (0, 2, 2, 1)


@pytest.mark.parametrize("arguments", [{"threads": -1}, {"depth": 0}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="Loader: threads"):
        Loader(_split(SlowSource(4)), [], **arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_equation_1(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 7, 6, channels), dtype=np.uint8)
    mean = rng.uniform(0.3, 0.6, channels).astype(np.float32)
    std = rng.uniform(0.1, 0.3, channels).astype(np.float32)
    expected = (images / 255.0 - mean.astype(np.float64)) / std.astype(np.float64)
    # Three roundings (scale, shift, difference) of terms no larger than (1 + mean) / std.
    bound = 4 * np.finfo(np.float32).eps * ((1 + mean.max()) / std.min())
    assert np.abs(normalise(images, mean, std) - expected).max() <= bound
