"""Shared convolution is used only where it is provably equal to window by window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import models, nn
from medmpi.slide.shared import NotShareable, plan
from medmpi.slide.windows import Shared, Windowed, choose, probabilities
from tests.slide.conftest import classifier_of


def tile_for(window, stride, counts, seed=0):
    shape = [(count - 1) * stride + window for count in counts]
    rng = np.random.default_rng(seed)
    fine = rng.normal(size=(*shape, 3))
    coarse = np.repeat(np.repeat(rng.normal(size=(shape[0] // 16 + 1, shape[1] // 16 + 1, 3)), 16, 0), 16, 1)
    return (fine + coarse[: shape[0], : shape[1]]).astype(np.float32)


@st.composite
def unpadded_network(draw):
    """A random network without padding, and a window that it fits."""
    graph, x, c = nn.Graph(), 0, 3
    for i in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        kind = draw(st.sampled_from(["conv", "branches", "max", "avg"]))
        if kind == "conv":
            x, c = graph.add(f"conv{i}", nn.Conv2d(c, 4, kernel, stride=stride, dilation=draw(st.integers(1, 2))), x), 4
        elif kind == "branches":
            a = graph.add(f"a{i}", nn.Conv2d(c, 3, kernel, stride=stride), x)
            b = graph.add(f"b{i}", nn.MaxPool2d(kernel, stride=stride), x)
            x, c = graph.add(f"join{i}", nn.Concat(), a, b), 3 + c
        elif kind == "max":
            x = graph.add(f"max{i}", nn.MaxPool2d(kernel, stride=stride, ceil_mode=draw(st.booleans())), x)
        else:
            x = graph.add(f"avg{i}", nn.AvgPool2d(kernel, stride=stride), x)
        x = graph.add(f"relu{i}", nn.ReLU(), x)
    window = draw(st.integers(30, 60))
    try:
        _, h, w, c = graph.shapes((1, window, window, 3))[-1]
    except ValueError:
        return None
    if draw(st.booleans()):
        x = graph.add("pool", nn.GlobalAvgPool2d(), x)
    else:
        x = graph.add("flat", nn.Flatten(), x)
        c = h * w * c
    graph.add("fc", nn.Linear(c, 2), x)
    return graph, window


@settings(max_examples=40, deadline=None)
@given(unpadded_network(), st.sampled_from([1, 2, 3, 4, 6, 7, 16]), st.integers(1, 5), st.integers(1, 4))
def test_a_plan_means_equal_scores(made, stride, rows, columns):
    """The proof by cases: whatever network gets a plan, sharing gives every window its own scores."""
    if made is None:
        return
    graph, window = made
    folded = classifier_of(graph, window).graph
    try:
        shared = plan(folded, (window, window))
    except NotShareable:
        assert not any(isinstance(node.layer, nn.FoldedConv2d) for node in folded.nodes[:1])
        return
    counts = rows, columns
    tile = tile_for(window, stride, counts)
    (want,) = Windowed(folded, (window, window)).run([(tile, counts)], stride)
    np.testing.assert_allclose(shared.forward(tile, stride, counts), want, atol=1e-5)


def test_sharing_is_exact_in_whole_numbers():
    """With integer weights and pixels float32 rounds nothing: not a single bit differs."""
    rng = np.random.default_rng(0)
    graph = nn.Graph()
    graph.add("conv1", nn.Conv2d(3, 4, 5, stride=2))
    graph.add("relu", nn.ReLU())
    graph.add("pool", nn.MaxPool2d(3, stride=2))
    graph.add("conv2", nn.Conv2d(4, 4, 3, stride=2))
    graph.add("flat", nn.Flatten())
    _, n = graph.shapes((1, 40, 40, 3))[-1]
    graph.add("fc", nn.Linear(n, 2))
    nn.Parameters(graph)
    for node in graph.nodes:
        for value in node.layer.p.values():
            value[...] = rng.integers(-2, 3, value.shape)
    folded = graph.fold()
    tile = rng.integers(-3, 4, (40 + 5 * 3, 40 + 4 * 3, 3)).astype(np.float32)
    (want,) = Windowed(folded, (40, 40)).run([(tile, (6, 5))], 3)
    np.testing.assert_array_equal(plan(folded, (40, 40)).forward(tile, 3, (6, 5)), want)


@pytest.mark.parametrize(
    ("stride", "counts", "least"), [(16, (14, 14), 20), (14, (16, 16), 5), (1, (20, 23), 4), (64, (4, 3), 2)]
)
def test_a_patch_of_windows_costs_a_fraction(stride, counts, least):
    """S4's tile of 14 x 14 windows at stride 16, and other strides, through a network of stride 16."""
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=224), 224, scale=300.0)
    engine, why = choose(classifier.graph, (224, 224), stride, counts)
    assert isinstance(engine, Shared), why
    windowed = Windowed(classifier.graph, (224, 224))
    assert windowed.macs(stride, counts) / engine.macs(stride, counts) > least, why
    rows, columns = min(counts[0], 4), min(counts[1], 3)  # the arithmetic is known; a corner shows the values
    tile = tile_for(224, stride, counts)
    (shared,) = engine.run([(tile, counts)], stride)
    corner = tile[-((rows - 1) * stride + 224) :, -((columns - 1) * stride + 224) :]
    (want,) = windowed.run([(corner, (rows, columns))], stride)
    bias = want.mean((0, 1))  # random weights favour one class: move to where scores differ
    got, want = probabilities(shared[-rows:, -columns:] - bias), probabilities(want - bias)
    assert want[..., 1].std() > 1e-4
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_cutting_a_tile_for_memory_changes_no_score(monkeypatch):
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=64), 64, scale=300.0)
    engine = Shared(plan(classifier.graph, (64, 64)))
    tile = tile_for(64, 4, (9, 7))
    (whole,) = engine.run([(tile, (9, 7))], 4)
    monkeypatch.setattr("medmpi.slide.windows._TILE_BYTES", 1 << 20)
    (parts,) = engine.run([(tile, (9, 7))], 4)
    assert len(engine._parts(4, (9, 7))[0]) > 1
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), "probe pads with zeros"),
        (nn.MaxPool2d(3, stride=2, padding=1), "probe pads"),
        (nn.MaxPool2d(2, stride=2, ceil_mode=True), "probe hangs over the window's edge by 1"),
        (nn.Pad2d((1, 1)), "probe is a Pad2d"),
        (nn.AdaptiveAvgPool2d(4), "probe makes a vector of each window"),
    ],
)
def test_what_depends_on_the_edge_is_refused(layer, why):
    graph = nn.Graph()
    graph.add("probe", layer)
    graph.add("pool", nn.GlobalAvgPool2d())
    graph.add("fc", nn.Linear(graph.shapes((1, 33, 33, 3))[-1][-1], 2))
    folded = classifier_of(graph, 33).graph
    with pytest.raises(NotShareable, match=why):
        choose(folded, (33, 33), 16, (2, 2), engine="shared")
    engine, said = choose(folded, (33, 33), 16, (2, 2))
    assert isinstance(engine, Windowed)
    assert why in said


def test_sharing_ends_where_padding_begins():
    """A network that pads only later shares what comes before; the rest is each window's own."""
    graph = nn.Graph()
    graph.add("stem", nn.Conv2d(3, 8, 5, stride=2))
    graph.add("pool", nn.MaxPool2d(2))
    graph.add("padded", nn.Conv2d(8, 8, 3, padding=1))
    graph.add("relu", nn.ReLU())
    graph.add("mean", nn.GlobalAvgPool2d())
    graph.add("fc", nn.Linear(8, 2))
    folded = classifier_of(graph, 48, scale=20.0).graph
    engine, why = choose(folded, (48, 48), 8, (6, 5))
    assert isinstance(engine, Shared)
    assert "until padded pads with zeros" in why
    tile = tile_for(48, 8, (6, 5))
    (got,), (want,) = engine.run([(tile, (6, 5))], 8), Windowed(folded, (48, 48)).run([(tile, (6, 5))], 8)
    assert want.std() > 0.01
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_windows_of_many_tiles_fill_batches_in_order():
    """The windowed engine's batches go on over tiles: results come out by tile, whatever the batch."""
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=32), 32, scale=300.0)
    engine = Windowed(classifier.graph, (32, 32))
    shapes = [(1, 1), (5, 7), (1, 3), (6, 6), (2, 1)]
    tiles = [(tile_for(32, 5, counts, seed), counts) for seed, counts in enumerate(shapes)]
    together = list(engine.run(iter(tiles), 5))
    for tile, found in zip(tiles, together, strict=True):
        (alone,) = engine.run([tile], 5)
        np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 6, 14, 16])
def test_means_are_taken_without_cutting_windows(monkeypatch, stride):
    """Cut windows are many times the map that they lie in."""
    graph = classifier_of(models.build("valid_cnn", classes=2, image_size=32), 32).graph
    shared = plan(graph, (32, 32))
    tile = tile_for(32, stride, (5, 4))
    monkeypatch.setattr("medmpi.slide.shared._cut", lambda *a: pytest.fail("a window was cut"))
    found = shared.forward(tile, stride, (5, 4))
    (want,) = Windowed(graph, (32, 32)).run([(tile, (5, 4))], stride)
    np.testing.assert_allclose(found, want, atol=1e-5)
