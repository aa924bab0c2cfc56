"""Recorded inference equals the graph's, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medmpi import kernels, models, nn
from medmpi.kernels.arrays import Array
from medmpi.models.build import MODELS

EVAL = nn.Context(train=False)


def built(name: str, size: int, width: int | None = None) -> nn.Graph:
    options: dict[str, Any] = {} if width is None else {"width": width}
    graph = models.build(name, classes=3, channels=1, image_size=size, **options).fuse()
    nn.Parameters(graph, seed=0)
    return graph


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("folded", [False, True])
def test_every_model(name: str, folded: bool) -> None:
    size = 224 if name in ("alexnet", "inception_v1") else 32
    graph = built(name, size)
    if folded:
        graph = graph.fold()
    session = nn.Session(graph, (2, size, size, 1))
    rng = np.random.default_rng(1)
    for _ in range(2):
        x = rng.standard_normal((2, size, size, 1), dtype=np.float32)
        (y,) = session(x)
        assert np.array_equal(y, graph.forward(x, context=EVAL)[0][0])


def test_it_follows_weights_that_change_in_place() -> None:
    graph = built("resnet18", 32, 8)
    session = nn.Session(graph, (1, 32, 32, 1))
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 1), dtype=np.float32)
    before = session(x)[0]
    graph["conv1"].p["weight"] *= 1.5
    after = session(x)[0]
    assert not np.array_equal(before, after)
    assert np.array_equal(after, graph.forward(x, context=EVAL)[0][0])


def test_values_share_memory_and_no_array_is_made() -> None:
    graph = built("unet", 64, 16).fold()
    session = nn.Session(graph, (1, 64, 64, 1))
    everything = sum(4 * int(np.prod(shape)) for shape in graph.shapes((1, 64, 64, 1)))
    assert 0 < session.nbytes < 0.5 * everything
    blocks = kernels.memory_statistics()["fresh_blocks"]
    for _ in range(3):
        session.run()
    assert kernels.memory_statistics()["fresh_blocks"] == blocks


def test_two_sessions_of_one_graph() -> None:
    graph = built("mini_xception", 32).fold()
    small, large = nn.Session(graph, (1, 32, 32, 1)), nn.Session(graph, (4, 32, 32, 1))
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 1), dtype=np.float32)
    whole = large(x)[0]
    for i in range(4):
        assert np.array_equal(small(x[i : i + 1])[0], whole[i : i + 1])


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_few_samples_at_a_time(samples: int) -> None:
    graph = built("unet", 32, 8).fold()
    session = nn.Session(graph, (6, 32, 32, 1), micro_batch=samples)
    x = np.random.default_rng(0).standard_normal((6, 32, 32, 1), dtype=np.float32)
    (whole,) = graph.forward(x, context=EVAL)[0]
    assert np.array_equal(session(x)[0], whole)
    np.copyto(session.inputs[0], x[::-1])
    session.run()
    assert np.array_equal(session.outputs[0], whole[::-1])
    with pytest.raises(ValueError, match="micro_batch is 4, expected a divisor of the batch of 6"):
        nn.Session(graph, (6, 32, 32, 1), micro_batch=4)


def test_a_tuned_session_computes_the_same() -> None:
    graph = built("mini_xception", 32).fold()
    session = nn.Session.tuned(graph, (4, 32, 32, 1))
    assert session.micro_batch in (1, 2, 4)
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 1), dtype=np.float32)
    np.testing.assert_allclose(session(x)[0], graph.forward(x, context=EVAL)[0][0], rtol=1e-4, atol=1e-5)


def test_wrong_inputs() -> None:
    session = nn.Session(built("mini_xception", 32), (1, 32, 32, 1))
    with pytest.raises(ValueError, match=r"float32 \(2, 32, 32, 1\), expected float32 \(1, 32, 32, 1\)"):
        session(np.zeros((2, 32, 32, 1), np.float32))
    with pytest.raises(ValueError, match="float64"):
        session(np.zeros((1, 32, 32, 1)))
    with pytest.raises(ValueError, match="2 inputs, expected 1"):
        session(*[np.zeros((1, 32, 32, 1), np.float32)] * 2)


class Doubles(nn.Layer):
    def forward(self, *xs: Array, context: nn.Context, overwrite: bool = False) -> tuple[Array, Any]:
        return 2 * xs[0], None

    def output_shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        return shapes[0]


def test_a_layer_that_computes_in_python_is_refused() -> None:
    graph = nn.Graph()
    graph.add("relu", nn.ReLU())
    graph.add("doubles", Doubles())
    with pytest.raises(RuntimeError, match="outside the kernels"):
        nn.Session(graph, (1, 4))
