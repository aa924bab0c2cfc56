"""Batch normalisation over ranks: parts of a batch that share statistics give what the whole batch gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from twin import close, images, network

from medmpi import nn
from medmpi.kernels.arrays import Array


class Meeting:
    """Threads that stand for ranks exchange statistics; a rank that skips a call breaks the barrier."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.given: list[Any] = [None] * size
        self.calls: list[list[str]] = [[] for _ in range(size)]

    def exchange(self, rank: int, kind: str, value: Any) -> list[Any]:
        self.calls[rank].append(kind)
        self.given[rank] = value
        self.barrier.wait()
        everyone = list(self.given)
        self.barrier.wait()
        return everyone


class FakeStatistics:
    """nn's Statistics over threads, with Chan's formula in the order of ranks."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def merge(
        self, count: int, mean: NDArray[np.float64], m2: NDArray[np.float64]
    ) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        total, center, spread = 0, np.zeros_like(mean), np.zeros_like(m2)
        for n, other, other_m2 in self.meeting.exchange(self.rank, "merge", (count, mean, m2)):
            if n == 0:
                continue
            delta = other - center
            center = center + delta * (n / (total + n))
            spread = spread + other_m2 + delta**2 * (total * n / (total + n))
            total += n
        return total, center, spread

    def start_sum(self, array: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        mine = array.copy()
        self.meeting.calls[self.rank].append("start")
        return lambda: np.sum(self.meeting.exchange(self.rank, "sum", mine), axis=0)


def _part(graph: nn.Graph, x: Array, labels: Any, total: int, context: nn.Context) -> tuple[float, Array, Array]:
    (logits,), saved = graph.forward(x, context=context)
    loss, dlogits = nn.CrossEntropy()(logits, labels, denominator=total)
    (dx,) = graph.backward((dlogits,), saved, input_gradients=True)
    return loss, logits, dx


@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 1, 6), (0, 6, 6), (0, 2, 2, 6)], ids=str)
@pytest.mark.parametrize("fuse", [False, True])
def test_shares_of_a_batch_equal_the_batch(cuts: Sequence[int], fuse: bool) -> None:
    rng = np.random.default_rng(8)
    x, labels = 3 + images(rng, 6, 8, 8, 3), rng.integers(0, 3, 6)

    def make() -> tuple[nn.Graph, nn.Parameters]:
        graph = network().fuse() if fuse else network()
        return graph, nn.Parameters(graph, seed=2)

    graph, parameters = make()
    loss, logits, dx = _part(graph, x, labels, 6, nn.Context(step=1))
    size = len(cuts) - 1
    meeting, results = Meeting(size), [None] * size
    ranks = [make() for _ in range(size)]
    errors = []

    def run(rank: int) -> None:
        a, b = cuts[rank], cuts[rank + 1]
        context = nn.Context(step=1, first_sample=a, statistics=FakeStatistics(meeting, rank))
        try:
            results[rank] = _part(ranks[rank][0], x[a:b], labels[a:b], 6, context)  # type: ignore[call-overload]
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(calls == meeting.calls[0] for calls in meeting.calls)
    parts: Any = results
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-6)
    close(np.concatenate([part[1] for part in parts]), logits)
    close(np.concatenate([part[2] for part in parts]), dx, 5e-5)
    gradient = np.sum([p.grad for _, p in ranks], axis=0)
    close(gradient, parameters.grad, 5e-5)
    for other, _ in ranks:
        for node in graph.nodes:
            for name, value in node.layer.b.items():
                close(other[node.name].b[name], value, 1e-6)


def test_ranks_add_gradients_before_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    meeting, graph = Meeting(1), network().fuse()
    parameters = nn.Parameters(graph, seed=3)
    x, labels = images(rng, 4, 8, 8, 3), rng.integers(0, 3, 4)
    _part(graph, x, labels, 4, nn.Context(step=1))
    at_once, calls = parameters.grad.copy(), meeting.calls[0]
    add, done = nn.Conv2d.add_gradients, []

    def noted(layer: nn.Conv2d, dy: Array, x: Array) -> None:
        calls.append("weights")
        add(layer, dy, x)

    monkeypatch.setattr(nn.Conv2d, "add_gradients", noted)
    parameters.zero_grad()
    (logits,), saved = graph.forward(x, context=nn.Context(step=1, statistics=FakeStatistics(meeting, 0)))
    _, dlogits = nn.CrossEntropy()(logits, labels, denominator=4)
    calls.clear()
    graph.backward((dlogits,), saved, done=lambda node: done.append(node.name))
    sums = [i for i, call in enumerate(calls) if call == "sum"]
    assert sums
    assert all(calls[i - 1] in ("start", "weights") for i in sums)
    assert ["start", "weights", "sum"] in [calls[i - 2 : i + 1] for i in sums]
    assert sorted(done) == sorted(node.name for node in graph.nodes)
    close(parameters.grad, at_once, 5e-5)


def test_no_samples_anywhere_change_nothing() -> None:
    graph = network()
    nn.Parameters(graph)
    context = nn.Context(statistics=FakeStatistics(Meeting(1), 0))
    loss, logits, _ = _part(graph, np.zeros((0, 8, 8, 3), np.float32), np.zeros(0, np.int64), 0, context)
    assert (loss, logits.shape) == (0.0, (0, 3))
    assert graph["bn1"].b["num_batches_tracked"] == 0
