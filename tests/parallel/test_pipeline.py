"""A model split into stages computes what the unsplit one does: every cut, both schedules, uneven micro-batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from medmpi import models, nn, parallel
from medmpi.parallel import World
from medmpi.parallel.cuts import balanced_cuts
from medmpi.parallel.schedule import gpipe, micro_batch_edges, one_f_one_b

BATCH, SIZE, CLASSES = 7, 16, 3
NETWORKS = {
    "resnet18": {"width": 4, "stem": "small"},
    "mini_xception": {"width": 8},
    "unet": {"width": 4},
}


def plain() -> nn.Graph:
    """A network without batch normalisation: a residual, two branches, dropout."""
    g = nn.Graph()
    a = g.add("conv1", nn.Conv2d(1, 8, 3, padding=1), 0)
    x = g.add("conv2", nn.Conv2d(8, 8, 3, padding=1), a)
    x = g.add("relu2", nn.ReLU(), x)
    a = g.add("add", nn.Add(), x, a)
    b = g.add("branch1", nn.Conv2d(8, 4, 1), a)
    c = g.add("branch2", nn.MaxPool2d(3, stride=1, padding=1), a)
    x = g.add("concat", nn.Concat(), b, c)
    x = g.add("pool", nn.AvgPool2d(2), x)
    x = g.add("dropout1", nn.Dropout(0.25), x)
    x = g.add("flatten", nn.Flatten(), x)
    x = g.add("fc1", nn.Linear(12 * SIZE * SIZE // 4, 16), x)
    x = g.add("dropout2", nn.Dropout(0.5), x)
    g.add("fc2", nn.Linear(16, CLASSES), x)
    return g


def network(name: str) -> nn.Graph:
    """A narrow network for images of SIZE."""
    if name == "plain":
        return plain()
    return models.build(name, classes=CLASSES, channels=1, image_size=SIZE, **NETWORKS[name]).fuse()  # type: ignore[arg-type]


def batch(name: str) -> tuple[Any, Any]:
    """The same images and labels on every rank."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE) if name == "unet" else BATCH)
    return rng.standard_normal((BATCH, SIZE, SIZE, 1), np.float32), labels


def serial(name: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Gradients, buffers and loss of the unsplit network and batch."""
    graph = network(name)
    parameters = nn.Parameters(graph, seed=2)
    images, labels = batch(name)
    (logits,), saved = graph.forward(images, context=nn.Context(seed=4))
    loss, dlogits = nn.CrossEntropy()(logits, labels)
    graph.backward((dlogits,), saved)
    buffers = {f"{node.name}.{key}": b.copy() for node in graph.nodes for key, b in node.layer.b.items()}
    return {key: g.copy() for key, g in parameters.named_gradients()}, buffers, loss


def split(
    name: str, grid: parallel.Grid, cuts: list[int], micro_batches: int, schedule: str
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The same of this rank's stage; the replicas share the batch unevenly."""
    model = network(name)
    stages = model.split(cuts)
    graph = stages[grid.stage]
    edges = [0, *cuts, len(model)]

    def values(n: int, cut: int) -> list[tuple[int, ...]]:
        sizes = model.shapes((n, SIZE, SIZE, 1))
        return [sizes[v] for v in model.live(cut)]

    pipeline = parallel.Pipeline(
        graph,
        grid,
        entering=lambda n: values(n, edges[grid.stage]),
        leaving=lambda n: values(n, edges[grid.stage + 1]),
        wanted_after=() if grid.last else stages[grid.stage + 1].wanted,
        micro_batches=micro_batches,
        schedule=schedule,
        whole_batch=name != "plain",
    )
    parameters = nn.Parameters(graph, seed=2, allocate=grid.data.allocate)
    images, labels = batch(name)
    first, stop = (BATCH * r // grid.replicas for r in (grid.replica, grid.replica + 1))
    mine = slice(first, stop)
    total = 0.0

    def loss(rows: slice, logits: Any) -> Any:
        nonlocal total
        value, dlogits = nn.CrossEntropy()(logits, labels[mine][rows], denominator=float(labels.size))
        total += value
        return dlogits

    statistics = parallel.RankStatistics(grid.data)
    context = nn.Context(seed=4, first_sample=first, statistics=statistics)
    buckets = parallel.GradientBuckets(parameters, grid.data)
    pipeline.step(images[mine] if grid.first else images[:0], stop - first, context, loss, buckets.done)
    buckets.finish()
    buffers = {f"{node.name}.{key}": b for node in graph.nodes for key, b in node.layer.b.items()}
    return dict(parameters.named_gradients()), buffers, total


def compare(mine: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Each array within ``tolerance`` of its largest element; arrays of rounding alone (1e-5) of the model's."""
    scale = max(np.abs(g).max() for g in expected.values()) if expected else 0.0
    for name, g in mine.items():
        size = np.abs(expected[name]).max()
        assert np.abs(g - expected[name]).max() <= tolerance * (size if size > 1e-5 * scale else scale), name


def check(world: World, name: str, grid: parallel.Grid, cuts: list[int], micro_batches: int, schedule: str) -> None:
    gradients, buffers, expected_loss = serial(name)
    mine, running, loss = split(name, grid, cuts, micro_batches, schedule)
    compare(mine, gradients, 1e-5)
    compare({key: running[key].astype(float) for key in running}, buffers, 1e-5)
    total = world.sum(np.array([loss]))
    assert total[0] == pytest.approx(expected_loss, rel=1e-5)
    if grid.replicas == 1 and micro_batches == 1:  # the same arithmetic in the same order
        for key, g in mine.items():
            np.testing.assert_allclose(g, gradients[key], rtol=0, atol=2e-6 * np.abs(gradients[key]).max() + 1e-7)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["resnet18", "mini_xception", "unet", "plain"])
def test_every_cut(world: World, name: str) -> None:
    grid = parallel.Grid(world, stages=2)
    for cut in range(1, len(network(name))):
        check(world, name, grid, [cut], 1 + cut % 4, ("1f1b", "gpipe")[cut % 2])


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("name", ["resnet18", "mini_xception", "unet", "plain"])
def test_values_that_skip_a_stage_are_handed_on(world: World, name: str) -> None:
    grid = parallel.Grid(world, stages=3)
    n = len(network(name))
    for cuts in ([n // 3, n // 3 + 1], [n // 3, 2 * n // 3], [1, n - 1], [n // 2 - 1, n // 2]):
        for micro_batches, schedule in ((1, "gpipe"), (3, "1f1b"), (7, "gpipe")):
            check(world, name, grid, cuts, micro_batches, schedule)


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("name", ["resnet18", "unet", "plain"])
def test_four_ranks_in_every_shape(world: World, name: str, stages: int) -> None:
    grid = parallel.Grid(world, stages=stages)
    n = len(network(name))
    cuts = [n * s // stages for s in range(1, stages)]
    for micro_batches, schedule in ((1, "1f1b"), (2, "gpipe"), (5, "1f1b")):
        check(world, name, grid, cuts, micro_batches, schedule)


@pytest.mark.mpi(min_size=2)
def test_micro_batches_of_their_own_statistics(world: World) -> None:
    """Without whole-batch statistics a stage interleaves passes; the result is that of one rank doing the same."""
    grid, alone = parallel.Grid(world, stages=2), parallel.Grid(world.split(world.rank))
    results = []
    for where, cuts, schedule in ((grid, [9], "1f1b"), (grid, [9], "gpipe"), (alone, [], "gpipe")):
        model = network("resnet18")
        graph = model.split(cuts)[where.stage] if cuts else model
        sizes = lambda n, m=model: [m.shapes((n, SIZE, SIZE, 1))[v] for v in m.live(9)]  # noqa: E731
        pipeline = parallel.Pipeline(
            graph, where, entering=sizes, leaving=sizes, wanted_after=[True] * len(model.live(9)),
            micro_batches=3, schedule=schedule,
        )  # fmt: skip
        parameters = nn.Parameters(graph, seed=2)
        images, labels = batch("resnet18")

        def loss(rows: slice, logits: Any, labels: Any = labels) -> Any:
            return nn.CrossEntropy()(logits, labels[rows], denominator=float(BATCH))[1]

        pipeline.step(images, BATCH, nn.Context(), loss, lambda node: None)
        results.append({key: g.copy() for key, g in parameters.named_gradients()})
    for result in results[:2]:
        for key, g in result.items():
            np.testing.assert_array_equal(g, results[2][key])


@pytest.mark.mpi(min_size=3)
def test_inference(world: World) -> None:
    images, _ = batch("unet")
    model = network("unet")
    nn.Parameters(model, seed=2)
    context = nn.Context(train=False)
    (expected,), _ = model.forward(images, context=context)
    grid, cuts = parallel.Grid(world, stages=3), [13, 30]
    edges = [0, *cuts, len(model)]

    def values(n: int, cut: int) -> list[tuple[int, ...]]:
        return [model.shapes((n, SIZE, SIZE, 1))[v] for v in model.live(cut)]

    pipeline = parallel.Pipeline(
        model.split(cuts)[grid.stage],
        grid,
        entering=lambda n: values(n, edges[grid.stage]),
        leaving=lambda n: values(n, edges[grid.stage + 1]),
    )
    for n in (BATCH, 1):
        logits = pipeline.infer(images[:n], n, context)
        assert (logits is None) == (not grid.last)
        if logits is not None:
            np.testing.assert_allclose(logits, expected[:n], rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.mpi(min_size=3)
def test_ranks_that_do_not_divide(world: World) -> None:
    with pytest.raises(ValueError, match="3 ranks do not divide into 2 stages"):
        parallel.Grid(world, stages=2)


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (2, 1), (2, 5), (4, 3), (4, 9)])
def test_schedules(stages: int, micro_batches: int) -> None:
    """Every pass once, forward before backward, in order; 1F1B holds no more than stages - stage micro-batches."""
    for stage in range(stages):
        for order in (list(one_f_one_b(stage, stages, micro_batches)), list(gpipe(micro_batches))):
            assert [i for what, i in order if what == "forward"] == list(range(micro_batches))
            assert [i for what, i in order if what == "backward"] == list(range(micro_batches))
            assert all(order.index(("forward", i)) < order.index(("backward", i)) for i in range(micro_batches))
        held, most = 0, 0
        for what, _ in one_f_one_b(stage, stages, micro_batches):
            held += 1 if what == "forward" else -1
            most = max(most, held)
        assert most == min(stages - stage, micro_batches)


@pytest.mark.parametrize(("n", "micro_batches", "unit"), [(7, 3, 1), (2, 5, 1), (0, 4, 1), (11, 3, 2), (64, 4, 2)])
def test_micro_batches(n: int, micro_batches: int, unit: int) -> None:
    edges = micro_batch_edges(n, micro_batches, unit)
    assert edges[0] == 0
    assert edges[-1] == n
    assert all(a % unit == 0 for a in edges[:-1])
    sizes = [b - a for a, b in pairwise(edges)]
    assert max(sizes) - min(sizes) <= 2 * unit - 1
    assert n == 0 or min(sizes) > 0
    assert len(sizes) <= micro_batches


def test_cuts_balance() -> None:
    """Against all possible cuts."""
    from itertools import combinations, pairwise

    def slowest(seconds, cuts) -> float:
        return max(sum(seconds[a:b]) for a, b in pairwise([0, *cuts, len(seconds)]))

    rng = np.random.default_rng(3)
    for _ in range(20):
        seconds = rng.integers(1, 9, 8).tolist()
        for stages in (1, 2, 3, 8):
            cuts = balanced_cuts(seconds, stages)
            best = min(slowest(seconds, c) for c in combinations(range(1, 8), stages - 1))
            assert slowest(seconds, cuts) == best
    assert balanced_cuts([1, 1, 1, 1], 2, transfer=[0, 9, 9, 0]) == [3]
    assert balanced_cuts([1, 1, 1, 1], 2, fits=lambda stage, first, stop: stop - first <= 3 - stage * 2) == [3]
    with pytest.raises(ValueError, match="fit the memory"):
        balanced_cuts([1, 1], 2, fits=lambda stage, first, stop: False)
    with pytest.raises(ValueError, match="3 stages of 2 nodes"):
        balanced_cuts([1, 1], 3)
