"""A network whose images are split by rows computes what the unsplit one does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from medmpi import models, nn
from medmpi.nn.tile_layers import WindowedConv
from medmpi.nn.tiles import local_shape, row_edges, tile
from medmpi.parallel import RankStatistics, World
from medmpi.parallel.spatial import RowExchange

CLASSES = 3
CASES = [
    ("unet", (32, 16), {"width": 4}),
    ("unet", (35, 21), {"width": 4}),  # rows that pooling drops come back as padding
    ("resnet18", (32, 32), {"width": 4, "stem": "small"}),
    ("resnet18", (67, 40), {"width": 4, "stem": "imagenet"}),
    ("resnet50", (32, 32), {"width": 4, "stem": "small"}),
    ("mini_xception", (17, 16), {"width": 8}),
    ("mini_xception", (22, 16), {"width": 8}),
]


def everything() -> nn.Graph:
    """Strides, dilation, even kernels, one-sided padding, all kinds of pooling and of upsampling."""
    g = nn.Graph()
    a = g.add("conv1", nn.Conv2d(2, 4, 5, padding=2), 0)
    x = g.add("pool1", nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), a)
    x = g.add("conv2", nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), x)
    x = g.add("bn2", nn.BatchNorm2d(4, relu=True), x)
    x = g.add("conv3", nn.Conv2d(4, 6, 4, stride=3, padding=((2, 1), (1, 1))), x)
    x = g.add("up3", nn.Upsample(3, "bilinear"), x)
    x = g.add("pad3", nn.Pad2d(((1, 2), (0, 1))), x)
    x = g.add("pool3", nn.AvgPool2d(2), x)
    x = g.add("up4", nn.Upsample(2, "nearest"), x)
    x = g.add("deconv", nn.ConvTranspose2d(6, 4, 2, stride=2), x)
    x = g.add("conv5", nn.Conv2d(4, 3, 1), x)
    g.add("valid", nn.Conv2d(3, CLASSES, 3), x)
    return g


def build(name: str, size: tuple[int, int], options: dict[str, Any]) -> nn.Graph:
    return models.build(name, classes=CLASSES, channels=2, image_size=size, **options).fuse()


def check(world: World, make: Any, size: tuple[int, int], n: int = 2) -> None:
    """Outputs, gradients (also of the image) and running statistics against the unsplit network."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((n, *size, 2), np.float32)
    whole = make()
    parameters = nn.Parameters(whole, seed=2)
    (logits,), saved = whole.forward(images, context=nn.Context())
    dense = logits.ndim == 4
    labels = rng.integers(0, CLASSES, logits.shape[:-1])
    _, dy = nn.CrossEntropy()(logits, labels)
    (dx,) = whole.backward((dy,), saved, input_gradients=True)

    exchange = RowExchange(world)
    graph, edges = tile(make(), exchange, images.shape)
    mine = nn.Parameters(graph, seed=2)
    first = edges[0]
    assert first is not None
    rows = slice(first[world.rank], first[world.rank + 1])
    context = nn.Context(statistics=RankStatistics(world))
    (part,), kept = graph.forward(np.ascontiguousarray(images[:, rows]), context=context)
    last = edges[-1]
    shape = local_shape(logits.shape, last, world.rank)
    assert part.shape == shape
    expected, share = logits, dy / np.float32(world.size)
    if last is not None:
        cut = slice(last[world.rank], last[world.rank + 1])
        expected, share = logits[:, cut], dy[:, cut]
        joined = exchange.gather_rows(part, last)
        if joined is not None:
            close(joined, logits)
    assert dense == (last is not None)
    close(part, expected, scale=np.abs(logits).max())
    (dpart,) = graph.backward((np.ascontiguousarray(share),), kept, input_gradients=True)
    close(dpart, dx[:, rows], 2e-5, scale=np.abs(dx).max())
    total = world.sum(mine.grad.copy())
    scale = np.abs(parameters.grad).max()
    for name in parameters.names():
        want = parameters.view(parameters.grad, name)
        own = np.abs(want).max()
        close(mine.view(total, name), want, 3e-5, scale=own if own > 1e-5 * scale else scale)
    for node, other in zip(graph.nodes, whole.nodes, strict=True):
        for name, value in node.layer.b.items():
            close(value, other.layer.b[name])


def close(a: Any, b: Any, tolerance: float = 1e-5, scale: float | None = None) -> None:
    assert a.shape == b.shape
    size = np.abs(b).max(initial=0) if scale is None else scale
    assert np.abs(a - b).max(initial=0) <= tolerance * (size or 1.0)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("name", "size", "options"), CASES)
def test_two_tiles(world: World, name: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    check(world, lambda: build(name, size, options), size)


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize(("name", "size", "options"), CASES)
def test_four_tiles_of_which_some_become_empty(
    world: World, name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    check(world, lambda: build(name, size, options), size, n=3)


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("size", [(40, 18), (53, 31)])
def test_three_tiles_of_every_layer(world: World, size: tuple[int, int]) -> None:
    check(world, everything, size)


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (5, 3), "padding": (2, 1), "relu": True},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 4, "padding": ((2, 1), (1, 1)), "stride": 2},
        {"kernel_size": 2, "padding": ((0, 1), (0, 0)), "bias": False},
        {"kernel_size": 3},
    ],
)
def test_rows_computed_while_others_come(world: World, n: int, window: dict[str, Any]) -> None:
    """Convolutions of tiles high enough for rows of their own, of one image and of several."""

    def make() -> nn.Graph:
        graph = nn.Graph()
        graph.add("conv", nn.Conv2d(2, CLASSES, **window), 0)
        return graph

    graph, _ = tile(make(), RowExchange(world), (n, 97, 12, 2))
    layer = graph["conv"]
    assert isinstance(layer, WindowedConv)
    assert world.any(bool(layer.pieces))  # a tile whose windows reach over nobody else's rows needs none
    check(world, make, (97, 12), n)


@pytest.mark.mpi(min_size=2)
def test_layers_that_cannot_be_split_are_named(world: World) -> None:
    g = nn.Graph()
    x = g.add("conv", nn.Conv2d(2, 4, 3, padding=1), 0)
    g.add("flatten", nn.Flatten(), x)
    with pytest.raises(ValueError, match=r"flatten: Flatten\(\) cannot be split into tiles"):
        tile(g, RowExchange(world), (1, 8, 8, 2))


def test_edges() -> None:
    assert row_edges(64, 4, 16) == (0, 16, 32, 48, 64)
    assert row_edges(70, 4, 16) == (0, 16, 32, 48, 70)
    assert row_edges(5, 4, 16) == (0, 1, 2, 3, 5)
    for height in range(1, 40):
        for tiles in range(1, 6):
            sizes = [b - a for a, b in pairwise(row_edges(height, tiles, 8))]
            assert sum(sizes) == height
            assert min(sizes) >= 0
