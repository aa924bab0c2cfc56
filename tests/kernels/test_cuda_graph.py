"""CUDA graphs, work that nobody waits for, and uploads, on a real or an emulated device."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medmpi import kernels as K

pytestmark = pytest.mark.skipif(not K.devices(), reason=f"no CUDA device: {K.missing_device()}")


def on_device(*shape, seed=0):
    return K.to_device(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def network(x, weight):
    """Kernels with memory of their own and with scratch memory."""
    y = K.relu(K.conv2d(x, weight, padding=1))
    mean, m2 = K.batch_norm_statistics(y)[1:]
    return K.add(K.linear(y.reshape(-1, 4), weight.reshape(-1, 4)[:4], None).reshape(*y.shape), y), mean, m2


def values(arrays):
    return [array.numpy() for array in arrays]


def test_a_graph_computes_again_on_new_values():
    x, weight = on_device(2, 8, 8, 3), on_device(3, 3, 3, 4, seed=1)
    network(x, weight)
    graph = K.CudaGraph()
    with graph:
        y = network(x, weight)
    assert len(graph) >= 6
    for seed in (2, 3):
        x[...] = np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32)
        graph.launch()
        for mine, other in zip(values(y), values(network(x, weight)), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_nobody_else_gets_a_graphs_memory():
    x, weight = on_device(2, 8, 8, 3), on_device(3, 3, 3, 4, seed=1)
    want = values(network(x, weight))
    graphs, results = [], []
    for _ in range(2):  # they share their memory
        graphs.append(K.CudaGraph(graphs[0]) if graphs else K.CudaGraph())
        with graphs[-1]:
            results.append(network(x, weight))
    others = [K.to_device(np.full(size, 7, np.float32)) for size in (16, 64, 256, 384, 512, 1024) for _ in range(8)]
    K.sum_squares(others[-1])  # has scratch memory, too
    for graph, y in zip(graphs, results, strict=True):
        graph.launch()
        for mine, other in zip(values(y), want, strict=True):
            np.testing.assert_array_equal(mine, other)
    assert all((other.numpy() == 7).all() for other in others)
    before = K.device_memory_statistics()["reserved"]
    del graph, graphs, results, y
    network(x, weight)
    assert K.device_memory_statistics()["reserved"] == before  # what the graphs had is used again


def pixels():
    return K.empty((1, 2, 2, 1), np.uint8, device="cuda")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: x.numpy(), "a copy to host memory"),
        (lambda x: K.sum_squares(x), "a copy to host memory"),
        (lambda x: K.to_device(np.ones(3, np.float32)), "a copy from host memory"),
        (lambda x: K.synchronize(), "a wait for the device"),
        (lambda x: K.normalize(pixels(), [0.4321], [0.1234]), "the upload of a table; do what is captured once before"),
    ],
)
def test_what_cannot_be_captured_is_named(what, message):
    x = on_device(1, 8, 8, 4)
    graph = K.CudaGraph()
    with pytest.raises(RuntimeError, match=f"a CUDA graph cannot capture {re.escape(message)}"), graph:
        what(K.add(x, x))
    with pytest.raises(RuntimeError, match="not captured yet"):
        graph.launch()
    with graph:  # may be tried again
        y = K.add(x, x)
    graph.launch()
    np.testing.assert_array_equal(y.numpy(), 2 * x.numpy())


def test_one_capture_at_a_time():
    with pytest.raises(RuntimeError, match="captured already, expected one at a time"), K.CudaGraph(), K.CudaGraph():
        pass
    graph = K.CudaGraph()
    with graph:
        pass
    with pytest.raises(RuntimeError, match="expected a new one"), graph:
        pass


def test_dropout_reads_its_key_at_every_launch():
    x = on_device(5, 30)
    key = K.to_device(np.zeros(2, np.int64))
    graph = K.CudaGraph()
    with graph:
        y = K.dropout_keyed(x, 0.4, key)
    for seed, offset in ((1, 0), (9, 150), (9, 64 * 5 + 63), (2**62 + 3, 2**40)):
        key[...] = np.array([seed, offset], np.int64)
        graph.launch()
        np.testing.assert_array_equal(y.numpy(), K.dropout(x, 0.4, seed=seed, offset=offset).numpy())


@pytest.mark.parametrize("classes", [3, 40])
def test_losses_that_nobody_waits_for_are_the_same(classes):
    rng = np.random.default_rng(1)
    logits = on_device(2, 5, 7, classes)
    labels = K.to_device(rng.integers(0, classes, (2, 5, 7)))
    weight = K.to_device(rng.random(classes, dtype=np.float32))
    by, loss = K.to_device(np.array([3.7])), K.empty((1,), np.float64, device="cuda")
    for plain, enqueued, options in (
        (K.softmax_cross_entropy, K.softmax_cross_entropy_by, {"weight": weight}),
        (K.softmax_cross_entropy, K.softmax_cross_entropy_by, {}),
        (K.dice_loss, K.dice_loss_by, {"smooth": 0.5, "include_background": False}),
    ):
        value, gradient = plain(logits, labels, denominator=3.7, **options)
        found = enqueued(logits, labels, by, loss, **options)
        assert loss.numpy()[0] == value
        np.testing.assert_array_equal(found.numpy(), gradient.numpy())


def test_correct_rows_are_counted():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 4, (700, 6)).astype(np.float32)  # many ties
    x[5, 3], x[6, :2] = np.nan, np.nan
    labels = np.where(rng.random(700) < 0.5, x.argmax(1), rng.integers(0, 6, 700))
    labels[5:7] = 3, 0
    count = K.empty((1,), np.int64, device="cuda")
    K.count_correct(K.to_device(x), K.to_device(labels), count)
    assert count.numpy()[0] == (x.argmax(1) == labels).sum()
    with pytest.raises(NotImplementedError, match="count_correct: not built for backend"):
        K.count_correct(x, labels, np.zeros(1, np.int64))


def pinned(values):
    array = K.pinned_empty(np.shape(values), np.float32)
    array[...] = values
    return array


def test_uploads_are_in_order_with_what_uses_them():
    uploads, place = K.Uploads(), K.to_device(np.zeros(1000, np.float32))
    sums = []
    for i in range(6):
        uploads.send(pinned(np.full(1000, float(i))), place)  # nobody holds the array: it stays until it is copied
        sums.append(K.add(place, place))
    assert [set(s.numpy().tolist()) for s in sums] == [{2.0 * i} for i in range(6)]
    uploads.finish()
    assert (place.numpy() == 5).all()


def test_page_locked_memory_is_used_again_when_it_was_read():
    uploads, places = K.Uploads(), [K.empty((20_000,), device="cuda") for _ in range(4)]
    for i, place in enumerate(places):
        uploads.send(pinned(np.full(20_000, float(i))), place)
        pinned(np.full(20_000, 99.0))
    assert [place.numpy()[-1] for place in places] == [0, 1, 2, 3]
    # a plain copy is done when it returns, from such memory, too
    host = pinned(np.ones(20_000))
    device = K.to_device(host)
    host[...] = 2
    assert (device.numpy() == 1).all()


def test_wrong_uploads():
    uploads, place = K.Uploads(), K.empty((4,), device="cuda")
    with pytest.raises(TypeError, match="host is not page-locked"):
        uploads.send(np.zeros(4, np.float32), place)
    with pytest.raises(ValueError, match=r"host has shape \(3,\) and dtype float32, expected \(4,\) and float32"):
        uploads.send(pinned(np.zeros(3)), place)
    with pytest.raises(ValueError, match="negative size"):
        K.pinned_empty((-1,), np.float32)
