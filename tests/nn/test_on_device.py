"""The same network on the host and on a device, real or emulated: losses, gradients, weights and files agree."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels as K
from medmpi import models, nn

pytestmark = pytest.mark.skipif(not K.devices(), reason=f"no CUDA device: {K.missing_device()}")


def residual():
    """Every kind of fused node of a residual network."""
    g = nn.Graph()
    x = g.add("conv", nn.Conv2d(2, 8, 3, padding=1, bias=False), 0)
    x = g.add("norm", nn.BatchNorm2d(8), x)
    x = skip = g.add("relu", nn.ReLU(), x)
    x = g.add("conv2", nn.Conv2d(8, 8, 3, padding=1, bias=False), x)
    x = g.add("norm2", nn.BatchNorm2d(8), x)
    x = g.add("add", nn.Add(), x, skip)
    x = g.add("relu2", nn.ReLU(), x)
    x = g.add("pool", nn.MaxPool2d(2), x)
    x = g.add("conv3", nn.Conv2d(8, 12, 3, stride=2, padding=1), x)
    x = g.add("relu3", nn.ReLU(), x)
    x = g.add("average", nn.GlobalAvgPool2d(), x)
    x = g.add("dropout", nn.Dropout(0.3), x)
    g.add("fc", nn.Linear(12, 3), x)
    return g.fuse()


def unet():
    return models.build("unet", classes=2, channels=1, image_size=16, width=4).fuse()


def train(graph, optimizer, loss, device, steps=3):
    """A few steps; losses, gradients of the last step, weights file's tensors and the optimizer's state."""
    rng = np.random.default_rng(3)
    parameters = nn.Parameters(graph, seed=1, device=device)
    step = optimizer(parameters)
    shape = (4, 16, 16, 2 if graph.nodes[0].name == "conv" else 1)
    losses = []
    for i in range(steps):
        x = rng.standard_normal(shape, dtype=np.float32)
        labels = rng.integers(0, 2, (4,) if shape[-1] == 2 else (4, 16, 16))
        context = nn.Context(train=True, seed=5, step=i)
        (logits,), saved = graph.forward(x if device == "cpu" else K.to_device(x), context=context)
        value, dlogits = loss(logits, labels)
        parameters.zero_grad()
        graph.backward((dlogits,), saved)
        losses.append(value)
        nn.clip_gradients(parameters, 1.0)
        step.step()
    gradients = {name: K.to_host(g) for name, g in parameters.named_gradients()}
    x = rng.standard_normal(shape, dtype=np.float32)
    (y,), _ = graph.forward(x if device == "cpu" else K.to_device(x), context=nn.Context(train=False))
    state = {name: K.to_host(value) for name, value in step.state_dict().items()}
    return losses, gradients, nn.checkpoint.state_dict(graph), state, K.to_host(y)


CASES = {
    "sgd": (residual, lambda p: nn.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3), nn.CrossEntropy([1.0, 2.0, 1.0])),
    "focal": (residual, lambda p: nn.SGD(p, lr=0.05), nn.CrossEntropy(gamma=2.0)),
    "unet": (unet, lambda p: nn.AdamW(p, lr=1e-3), nn.DiceCrossEntropy()),
}


@pytest.mark.parametrize("case", list(CASES))
def test_training_on_the_device_is_that_on_the_host(case):
    make, optimizer, loss = CASES[case]
    host, device = (train(make(), optimizer, loss, where) for where in ("cpu", "cuda"))
    np.testing.assert_allclose(device[0], host[0], rtol=2e-4)
    for mine, other in zip(device[1:4], host[1:4], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert value.dtype == other[name].dtype
            scale = np.abs(other[name]).max() + 1e-3
            off = np.abs(value - other[name])
            # Adam moves a weight whose gradient is nearly 0 by what rounding makes of it: one in a thousand may differ
            assert np.sum(off > 2e-3 * scale) <= off.size // 1000, name
            assert off.max() <= 2e-2 * scale, name
    np.testing.assert_allclose(device[4], host[4], atol=2e-3 * np.abs(host[4]).max())


@pytest.mark.parametrize(("precision", "share"), [("tf32", 5e-4), ("bf16", 1e-2)])
def test_losses_follow_those_of_float32(precision, share):
    make, optimizer, loss = CASES["sgd"]
    want = train(make(), optimizer, loss, "cpu")[0]
    before = K.precision()
    K.set_precision(precision)
    try:
        found = train(make(), optimizer, loss, "cuda")[0]
    finally:
        K.set_precision(before)
    assert found != want
    np.testing.assert_allclose(found, want, rtol=share)


def test_files_and_states_go_to_either_side():
    graphs = {where: residual() for where in ("cpu", "cuda")}
    parameters = {where: nn.Parameters(graph, seed=len(where), device=where) for where, graph in graphs.items()}
    weights = nn.checkpoint.state_dict(graphs["cpu"])
    nn.checkpoint.load_state_dict(graphs["cuda"], weights)
    for name, value in nn.checkpoint.state_dict(graphs["cuda"]).items():
        np.testing.assert_array_equal(value, weights[name])
    sgd = {where: nn.SGD(p, lr=0.1, momentum=0.9) for where, p in parameters.items()}
    K.fill_(parameters["cuda"].grad, 0.5)
    sgd["cuda"].step()
    sgd["cpu"].load_state_dict({name: K.to_host(value) for name, value in sgd["cuda"].state_dict().items()})
    sgd["cuda"].load_state_dict(sgd["cpu"].state_dict())
    used = nn.Parameters.view(parameters["cpu"], sgd["cpu"].momentum_buffer, "fc.weight")
    assert (used == 0.5).all()
    assert sgd["cpu"].steps == 1


def test_a_session_runs_on_the_device():
    graph = residual()
    nn.Parameters(graph, seed=0)
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 2), dtype=np.float32)
    folded = graph.fold()
    (want,), _ = folded.forward(x, context=nn.Context(train=False))
    for node in folded.nodes:
        node.layer.move(K.to_device)
    results = []
    for micro_batch, captured in ((1, True), (1, False), (2, True)):
        session = nn.Session(folded, x.shape, micro_batch=micro_batch, device="cuda", captured=captured)
        (y,) = session(x)
        np.testing.assert_allclose(y.numpy(), want, atol=1e-4 * np.abs(want).max())
        results.append(y.numpy())
    np.testing.assert_array_equal(results[0], results[1])
