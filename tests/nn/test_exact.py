"""Gradients summed in parts do not depend on how a batch is cut, and are those of ordinary backward."""

from __future__ import annotations

import numpy as np
import pytest
from twin import images, network, step

from medmpi import nn
from medmpi.parallel import RankStatistics, start

LABELS = np.arange(10) % 3


def gradients(samples: int | None) -> dict[str, np.ndarray]:
    """Of the small network, on ten images; exact where the samples of a part are given."""
    graph = network().fuse()
    parameters = nn.Parameters(graph, seed=1)
    exact = None if samples is None else nn.ExactGradients(parameters, samples)
    x = images(np.random.default_rng(0), 10, 8, 8, 3)
    step(graph, x, LABELS, nn.Context(statistics=RankStatistics(start())))
    if exact is not None:
        exact.round()
    return {name: gradient.copy() for name, gradient in parameters.named_gradients()}


@pytest.mark.parametrize("samples", [1, 3, 10, 64])
def test_gradients_are_those_of_ordinary_backward(samples: int) -> None:
    expected, found = gradients(None), gradients(samples)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # a bias before batch normalisation has gradient 0 but for rounding
        np.testing.assert_allclose(found[name], gradient, atol=3e-6 * np.abs(gradient).max() + 2e-7, err_msg=name)


@pytest.mark.parametrize("cut", [2, 4, 8])
def test_halves_add_up_to_the_whole(cut: int) -> None:
    """Without batch statistics a batch may come in two passes: the float64 sums agree to the last bit."""
    x = images(np.random.default_rng(0), 10, 8, 8, 3)

    def total(*parts: slice) -> np.ndarray:
        graph = nn.Graph()
        graph.add("conv1", nn.Conv2d(3, 8, 3, stride=2, relu=True))
        graph.add("up", nn.ConvTranspose2d(8, 4, 2, stride=2))
        graph.add("conv2", nn.Conv2d(4, 4, 3, groups=4))
        graph.add("flatten", nn.Flatten())
        graph.add("fc", nn.Linear(64, 3))
        parameters = nn.Parameters(graph, seed=1)
        exact = nn.ExactGradients(parameters, 2)
        for part in parts:
            (logits,), saved = graph.forward(x[part], context=nn.Context())
            _, dlogits = nn.CrossEntropy()(logits, LABELS[part], denominator=np.array([10.0]))
            graph.backward((dlogits,), saved)
        assert not np.any(parameters.grad)
        return exact.total

    np.testing.assert_array_equal(total(slice(0, cut), slice(cut, 10)), total(slice(0, 10)))
    np.testing.assert_array_equal(total(slice(cut, 10), slice(0, cut)), total(slice(0, 10)))


def test_zero_grad_clears_the_sums() -> None:
    graph = network().fuse()
    parameters = nn.Parameters(graph, seed=1)
    exact = nn.ExactGradients(parameters, 2)
    step(graph, images(np.random.default_rng(0), 10, 8, 8, 3), LABELS, nn.Context())
    assert np.any(exact.total)
    parameters.zero_grad()
    assert not np.any(exact.total)
    with pytest.raises(ValueError, match="samples is 0"):
        nn.ExactGradients(parameters, 0)
