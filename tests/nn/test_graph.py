"""The graph: gradients by finite differences, fusing, splitting, memory, hooks, shapes and errors."""

from __future__ import annotations

import gc
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from twin import alone, close, images, network, step

from medmpi import kernels, nn
from medmpi.kernels.arrays import Array
from medmpi.nn import checkpoint

CONTEXT = nn.Context(seed=3, step=5)


def _batch(n: int = 4) -> tuple[Array, Any]:
    rng = np.random.default_rng(1)
    return images(rng, n, 8, 8, 3), rng.integers(0, 3, n)


def test_gradients_are_the_slopes_of_the_loss() -> None:
    x, labels = _batch()
    graph = network()
    parameters = nn.Parameters(graph, seed=1)
    rng = np.random.default_rng(2)
    _, dx = step(graph, x, labels, CONTEXT)
    gradient = parameters.grad.copy()

    def loss() -> float:
        ((logits,), _) = graph.forward(x, context=CONTEXT)
        wide = logits.astype(np.float64)
        wide -= np.log(np.exp(wide).sum(1, keepdims=True))
        return float(-wide[np.arange(len(labels)), labels].mean())

    for array, slope in ((parameters.value, gradient), (x, dx)):
        directions = [np.sign(slope), *(images(rng, *slope.shape) for _ in range(3))]
        for direction in directions:
            h = 2e-3 / np.sqrt(float((direction**2).sum()))
            start = array.copy()
            array += h * direction
            above = loss()
            array[...] = start - h * direction
            below = loss()
            array[...] = start
            expected = float((slope.astype(np.float64) * direction).sum())
            scale = float(np.linalg.norm(slope) * np.linalg.norm(direction)) / np.sqrt(slope.size)
            assert (above - below) / (2 * h) == pytest.approx(expected, rel=0.03, abs=0.05 * scale)


def test_fused_equals_unfused() -> None:
    x, labels = _batch()
    plain, other = network(), network()
    nn.Parameters(plain, seed=1)
    fused = other.fuse()
    nn.Parameters(fused, seed=1)
    assert [node.name for node in fused.nodes] == [
        "conv1", "bn1", "conv2", "bn2", "conv3", "down.0", "down.1", "bn3", "branch1", "branch2", "concat", "bn4",
        "conv5", "bn5", "pool", "flatten", "fc1", "relu4", "dropout", "fc2",
    ]  # fmt: skip
    loss, dx = step(plain, x, labels, CONTEXT)
    fused_loss, fused_dx = step(fused, x, labels, CONTEXT)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    close(fused_dx, dx)
    for node in fused.nodes:
        for name, gradient in node.layer.g.items():
            # biases before a normalisation have no gradient but noise
            noise = 1e-6 if node.name in ("conv2", "conv5") and name == "bias" else 0.0
            assert np.abs(gradient - plain[node.name].g[name]).max() <= 2e-5 * np.abs(gradient).max() + noise
    state, fused_state = checkpoint.state_dict(plain), checkpoint.state_dict(fused)
    assert state.keys() == fused_state.keys()
    for name, value in state.items():
        close(fused_state[name], value)
    for train in (True, False):
        context = nn.Context(train=train)
        close(fused.forward(x, context=context)[0][0], plain.forward(x, context=context)[0][0])


def test_fusing_leaves_values_with_other_readers() -> None:
    g = nn.Graph()
    a = g.add("bn", nn.BatchNorm2d(3), 0)
    b = g.add("relu", nn.ReLU(), a)
    g.add("add", nn.Add(), a, b)
    assert [node.name for node in g.fuse().nodes] == ["bn", "relu", "add"]
    g = nn.Graph()
    a = g.add("bn", nn.BatchNorm2d(3), 0)
    b = g.add("relu", nn.ReLU(), a)
    g.outputs = (a, b)
    assert [node.name for node in g.fuse().nodes] == ["bn", "relu"]
    g = nn.Graph()
    a = g.add("bn", nn.BatchNorm2d(3), 0)
    g.add("add", nn.Add(), a, a)
    assert [node.name for node in g.fuse().nodes] == ["bn", "add"]


def test_fusing_keeps_parameters_that_are_there() -> None:
    x, _ = _batch()
    graph = network()
    nn.Parameters(graph, seed=1)
    context = nn.Context(train=False)
    close(graph.fuse().forward(x, context=context)[0][0], graph.forward(x, context=context)[0][0])


@pytest.mark.parametrize("fuse", [False, True])
def test_split_at_every_cut_equals_unsplit(fuse: bool) -> None:
    x, labels = _batch()
    graph = network().fuse() if fuse else network()
    parameters = nn.Parameters(graph, seed=1)
    loss, dx = step(graph, x, labels, CONTEXT)
    gradient = parameters.grad.copy()
    some = list(combinations(range(1, len(graph)), 2))[::17]
    for cuts in [(c,) for c in range(1, len(graph))] + some:
        parameters.zero_grad()
        values: tuple[Array, ...] = (x,)
        kept = []
        stages = graph.split(cuts)
        assert [node for stage in stages for node in (n.name for n in stage.nodes)] == [n.name for n in graph.nodes]
        for stage in stages:
            values, saved = stage.forward(*values, context=CONTEXT)
            kept.append(saved)
        split_loss, dlogits = nn.CrossEntropy()(values[0], labels)
        grads: tuple[Array, ...] = (dlogits,)
        for stage in reversed(stages):
            grads = stage.backward(grads, kept.pop(), input_gradients=True)
        assert split_loss == loss
        np.testing.assert_array_equal(grads[0], dx)
        np.testing.assert_array_equal(parameters.grad, gradient)


def test_cuts_that_make_no_stages() -> None:
    graph = network()
    for cuts in ([0], [len(graph)], [3, 3], [5, 2], [-1]):
        with pytest.raises(ValueError, match="expected rising from 1 to"):
            graph.split(cuts)


def test_two_passes_in_flight_do_not_mix() -> None:
    x, labels = _batch()
    graph = network()
    parameters = nn.Parameters(graph, seed=1)
    contexts = nn.Context(step=1, first_sample=0), nn.Context(step=1, first_sample=2)
    apart = [step(graph, x[i : i + 2], labels[i : i + 2], contexts[i // 2]) for i in (0, 2)]
    gradient = parameters.grad.copy()
    parameters.zero_grad()
    passes = [graph.forward(x[i : i + 2], context=contexts[i // 2]) for i in (0, 2)]
    for i in (0, 1):
        (logits,), saved = passes[i]
        _, dlogits = nn.CrossEntropy()(logits, labels[2 * i : 2 * i + 2])
        (dx,) = graph.backward((dlogits,), saved, input_gradients=True)
        np.testing.assert_array_equal(dx, apart[i][1])
    np.testing.assert_array_equal(parameters.grad, gradient)


def test_inputs_and_output_gradients_are_not_written_to() -> None:
    rng = np.random.default_rng(0)
    for layer in (
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4, relu=True),
        nn.Flatten(),
        nn.Conv2d(4, 4, 1, relu=True),
    ):
        graph = nn.Graph()
        graph.add("first", layer)
        graph.add("second", nn.Dropout(0.5))
        nn.Parameters(graph)
        x = images(rng, 3, 4, 4, 4)
        dy = images(rng, *graph.output_shape(x.shape))
        x_before, dy_before = x.copy(), dy.copy()
        _, saved = graph.forward(x)
        graph.forward(x, context=nn.Context(train=False))
        graph.backward((dy,), saved, input_gradients=True)
        np.testing.assert_array_equal(x, x_before)
        np.testing.assert_array_equal(dy, dy_before)


def test_outputs_survive_later_nodes() -> None:
    rng = np.random.default_rng(0)
    x = images(rng, 2, 4, 4, 3)
    graph = nn.Graph()
    a = graph.add("conv", nn.Conv2d(3, 4, 3))
    b = graph.add("flatten", nn.Flatten(), a)
    c = graph.add("relu", nn.ReLU(), b)
    graph.outputs = (a, c)
    nn.Parameters(graph)
    (first, last), saved = graph.forward(x, context=nn.Context(train=False))
    assert (first < 0).any()
    np.testing.assert_array_equal(last, np.maximum(first, 0).reshape(last.shape))
    (first, last), saved = graph.forward(x)
    ones = np.ones_like(first)
    (dx,) = graph.backward((ones, np.ones_like(last)), saved, input_gradients=True)
    (first, _), saved = graph.forward(x)
    (expected,) = graph.split([1])[0].backward((ones + (first > 0),), saved[:1], input_gradients=True)
    close(dx, expected, 1e-6)


def test_hooks_fire_when_gradients_are_final() -> None:
    x, labels = _batch()
    graph = network()
    parameters = nn.Parameters(graph, seed=1)
    step(graph, x, labels, CONTEXT)
    final = parameters.grad.copy()
    parameters.zero_grad()
    seen = []

    def done(node: nn.Node) -> None:
        seen.append(node.name)
        part = slice(0, parameters.slices[node.name].stop)
        np.testing.assert_array_equal(parameters.grad[part], final[part])

    (logits,), saved = graph.forward(x, context=CONTEXT)
    _, dlogits = nn.CrossEntropy()(logits, labels)
    assert graph.backward((dlogits,), saved, done=done) == ()
    assert seen == [node.name for node in reversed(graph.nodes)]


def test_the_first_layer_makes_no_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nn.Graph()
    graph.add("conv1", nn.Conv2d(3, 4, 3))
    graph.add("conv2", nn.Conv2d(4, 2, 3))
    nn.Parameters(graph)
    calls = []
    original = kernels.conv2d_backward_data
    monkeypatch.setattr(
        kernels, "conv2d_backward_data", lambda *a, **k: (calls.append(k["x_shape"]), original(*a, **k))[1]
    )
    (y,), saved = graph.forward(np.ones((1, 8, 8, 3), np.float32))
    graph.backward((y,), saved)
    assert calls == [(1, 6, 6, 4)]


def test_values_are_dropped_when_they_die() -> None:
    graph = nn.Graph()
    for i in range(12):
        graph.add(f"pool{i}", nn.AvgPool2d(3, stride=1, padding=1))
    x = np.ones((4, 32, 32, 16), np.float32)
    graph.forward(x, context=nn.Context(train=False))
    gc.collect()
    kernels.reset_peak_memory()
    before = kernels.memory_statistics()["in_use"]
    graph.forward(x, context=nn.Context(train=False))
    used = kernels.memory_statistics()["peak"] - before
    assert 2 * x.nbytes <= used <= 2.5 * x.nbytes  # an input and an output; x itself is not from the pool


def test_saved_values_serve_once() -> None:
    x, labels = _batch()
    graph = network()
    nn.Parameters(graph)
    (logits,), saved = graph.forward(x)
    _, dlogits = nn.CrossEntropy()(logits, labels)
    graph.backward((dlogits,), saved)
    with pytest.raises(ValueError, match="saved is used up"):
        graph.backward((dlogits,), saved)


def test_shapes_and_summary() -> None:
    graph = network()
    assert graph.output_shape((5, 8, 8, 3)) == (5, 3)
    infos = {info.name: info for info in graph.describe((1, 8, 8, 3))}
    assert infos["conv3"].shape == (1, 4, 4, 16)
    assert infos["conv3"].parameters == 3 * 3 * 8 * 16
    assert infos["conv3"].macs == 4 * 4 * 16 * 3 * 3 * 8
    assert infos["conv5"].macs == 4 * 4 * 20 * 9
    assert graph.macs((2, 8, 8, 3)) == 2 * graph.macs((1, 8, 8, 3))
    text = graph.summary((1, 8, 8, 3))
    assert "down.1" in text
    assert text.splitlines()[-1].split()[1] == f"{sum(i.parameters for i in infos.values()):,}"


def test_images_that_do_not_fit_name_the_layer() -> None:
    graph = nn.Graph()
    graph.add("features.0", nn.Conv2d(3, 8, 7, stride=2))
    graph.add("features.1", nn.MaxPool2d(3, stride=2))
    with pytest.raises(ValueError, match=r"features\.1: image side is 1 .*expected at least the window's 3.*too small"):
        graph.output_shape((1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"features\.0: x has 1 channels, expected 3"):
        graph.output_shape((1, 32, 32, 1))
    with pytest.raises(ValueError, match=r"expected \(N, H, W, C\)"):
        graph.output_shape((1, 32))
    graph = network()
    with pytest.raises(ValueError, match=r"fc1: x has shape \(1, 320\), expected \(N, 80\)"):
        graph.output_shape((1, 16, 16, 3))


def test_wiring_errors() -> None:
    graph = nn.Graph()
    relu = nn.ReLU()
    graph.add("relu", relu)
    with pytest.raises(ValueError, match="relu is there already"):
        graph.add("relu", nn.ReLU())
    with pytest.raises(ValueError, match="another node already"):
        graph.add("relu2", relu)
    with pytest.raises(ValueError, match="reads value 7"):
        graph.add("relu3", nn.ReLU(), 7)
    with pytest.raises(ValueError, match="2 inputs, expected 1"):
        graph.forward(np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32))
    with pytest.raises(KeyError, match="nothing"):
        graph["nothing"]


def test_errors_in_layers_carry_the_node() -> None:
    graph, _ = alone(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError) as caught:
        graph.forward(np.ones((1, 5, 5, 2), np.float32))
    assert any("in forward of layer, Conv2d(3, 4, 3x3)" in note for note in caught.value.__notes__)


def test_results_that_backward_needs_are_not_overwritten() -> None:
    x = images(np.random.default_rng(0), 2, 5, 5, 3)
    graph = nn.Graph()
    a = graph.add("conv1", nn.Conv2d(3, 4, 1), 0)
    a = graph.add("relu", nn.ReLU(), a)
    b = graph.add("conv2", nn.Conv2d(3, 4, 1, init={"bias": nn.constant(-10.0)}), 0)
    graph.add("add", nn.Add(), a, b)
    nn.Parameters(graph)
    (y,), saved = graph.forward(x)
    assert (y < 0).all()
    graph.backward((np.ones_like(y),), saved)
    positive = x.reshape(-1, 3) @ graph["conv1"].p["weight"][0, 0] + graph["conv1"].p["bias"] > 0
    np.testing.assert_array_equal(graph["conv1"].g["bias"], positive.sum(0))
