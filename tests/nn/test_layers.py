"""Every layer against torch in float64: results, gradients, running statistics, output shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from twin import alone, close, images

from medmpi import nn
from medmpi.nn import checkpoint

torch = pytest.importorskip("torch", reason="torch is the oracle of the layers")

CASES: dict[str, tuple[Callable[[], nn.Layer], Callable[[], Any], tuple[tuple[int, ...], ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), lambda: torch.nn.Conv2d(3, 8, 3, padding=1), ((2, 7, 6, 3),)),
    "conv-stride": (
        lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2, bias=False),
        lambda: torch.nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (2, 1), groups=2, bias=False),
        ((3, 9, 8, 4),),
    ),
    "conv-relu": (
        lambda: nn.Conv2d(3, 5, 3, relu=True),
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU()),
        ((2, 7, 6, 3),),
    ),
    "depthwise": (
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
        lambda: torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        ((2, 6, 6, 8),),
    ),
    "conv-transpose": (
        lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        lambda: torch.nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
        ((2, 4, 5, 6),),
    ),
    "conv-transpose-groups": (
        lambda: nn.ConvTranspose2d(6, 4, (2, 3), stride=(2, 1), groups=2, dilation=2, bias=False),
        lambda: torch.nn.ConvTranspose2d(6, 4, (2, 3), (2, 1), groups=2, dilation=2, bias=False),
        ((1, 4, 5, 6),),
    ),
    "linear": (lambda: nn.Linear(12, 5), lambda: torch.nn.Linear(12, 5), ((4, 12),)),
    "linear-plain": (lambda: nn.Linear(3, 2, bias=False), lambda: torch.nn.Linear(3, 2, bias=False), ((1, 3),)),
    "batch-norm": (lambda: nn.BatchNorm2d(6), lambda: torch.nn.BatchNorm2d(6), ((3, 4, 5, 6),)),
    "batch-norm-average": (
        lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=None),
        lambda: torch.nn.BatchNorm2d(3, eps=1e-3, momentum=None),
        ((2, 4, 5, 3),),
    ),
    "relu": (nn.ReLU, torch.nn.ReLU, ((2, 3, 4, 5),)),
    "max-pool": (
        lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        lambda: torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        ((2, 8, 7, 4),),
    ),
    "max-pool-dilated": (
        lambda: nn.MaxPool2d((2, 3), stride=1, dilation=2),
        lambda: torch.nn.MaxPool2d((2, 3), 1, 0, 2),
        ((2, 8, 7, 4),),
    ),
    "avg-pool": (
        lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        lambda: torch.nn.AvgPool2d(3, 2, 1, True, False),
        ((2, 8, 7, 4),),
    ),
    "adaptive-even": (lambda: nn.AdaptiveAvgPool2d(3), lambda: torch.nn.AdaptiveAvgPool2d(3), ((2, 6, 9, 4),)),
    "adaptive-ragged": (
        lambda: nn.AdaptiveAvgPool2d((3, 4)),
        lambda: torch.nn.AdaptiveAvgPool2d((3, 4)),
        ((2, 7, 9, 4),),
    ),
    "adaptive-larger": (lambda: nn.AdaptiveAvgPool2d(6), lambda: torch.nn.AdaptiveAvgPool2d(6), ((2, 2, 4, 3),)),
    "adaptive-same": (lambda: nn.AdaptiveAvgPool2d(4), lambda: torch.nn.AdaptiveAvgPool2d(4), ((2, 4, 4, 3),)),
    "upsample": (
        lambda: nn.Upsample(2),
        lambda: torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        ((2, 3, 4, 5),),
    ),
    "upsample-nearest": (
        lambda: nn.Upsample(3, mode="nearest"),
        lambda: torch.nn.Upsample(scale_factor=3, mode="nearest"),
        ((1, 3, 4, 2),),
    ),
    "pad": (lambda: nn.Pad2d(((1, 0), (2, 3))), lambda: torch.nn.ZeroPad2d((2, 3, 1, 0)), ((2, 3, 4, 5),)),
}


def to_torch(x: Any) -> Any:
    x = torch.from_numpy(np.asarray(x, np.float64))
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


def from_torch(x: Any) -> Any:
    x = x.detach()
    return x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str) -> None:
    make, make_torch, shapes = CASES[name]
    rng = np.random.default_rng(3)
    torch.manual_seed(0)
    layer, twin = make(), make_torch().double()
    graph, parameters = alone(layer)
    for p in twin.parameters():
        p.data.uniform_(0.5, 1.5) if p.ndim == 1 else p.data.normal_()
    # a Sequential prefixes its names with the module's number
    named = {k.removeprefix("0."): v for k, v in twin.state_dict().items()}
    state = {f"layer.{k}": v.numpy().astype(np.int64 if v.ndim == 0 else np.float32) for k, v in named.items()}
    checkpoint.load_state_dict(graph, state)
    for key, value in twin.state_dict().items():
        if value.ndim:
            value.copy_(torch.from_numpy(state["layer." + key.removeprefix("0.")]))
    xs = [images(rng, *shape) for shape in shapes]
    ts = [to_torch(x).requires_grad_() for x in xs]
    expected = twin(*ts)
    (y,), saved = graph.forward(*xs)
    assert y.shape == graph.output_shape(*shapes)
    close(y, from_torch(expected))
    dy = images(rng, *y.shape)
    expected.backward(to_torch(dy))
    dxs = graph.backward((dy,), saved, input_gradients=True)
    for dx, t in zip(dxs, ts, strict=True):
        close(dx, from_torch(t.grad), 5e-5)
    for key, p in twin.named_parameters():
        key = key.removeprefix("0.")
        close(layer.to_torch(key, layer.g[key]), p.grad.numpy(), 5e-5)
    for key, value in twin.named_buffers():
        close(layer.b[key], value.numpy())
    # gradients of parameters add up, and the inputs' stay the same
    before = parameters.grad.copy()
    _, saved = graph.forward(*xs)
    again = graph.backward((dy,), saved, input_gradients=True)
    close(parameters.grad, 2 * before, 1e-6)
    for dx, first in zip(again, dxs, strict=True):
        np.testing.assert_array_equal(dx, first)
    twin(*ts)  # running statistics have moved twice
    twin.eval()
    close(graph.forward(*xs, context=nn.Context(train=False))[0][0], from_torch(twin(*ts)), 5e-5)


@pytest.mark.parametrize("name", CASES)
def test_without_samples(name: str) -> None:
    make, _, shapes = CASES[name]
    graph, parameters = alone(make())
    xs = [np.zeros((0, *shape[1:]), np.float32) for shape in shapes]
    (y,), saved = graph.forward(*xs)
    assert y.shape == graph.output_shape(*(x.shape for x in xs))
    (dx,) = graph.backward((np.zeros_like(y),), saved, input_gradients=True)
    assert dx.shape == xs[0].shape
    assert not parameters.grad.any()
    assert all(np.isfinite(value).all() for value in graph["layer"].b.values())


def test_linear_behind_flatten_takes_torchs_weights() -> None:
    rng = np.random.default_rng(0)
    x = images(rng, 2, 3, 4, 5)
    graph = nn.Graph()
    graph.add("flatten", nn.Flatten())
    graph.add("fc", nn.Linear(60, 7, flattened=(3, 4, 5)))
    nn.Parameters(graph)
    twin = torch.nn.Linear(60, 7)
    checkpoint.load_state_dict(graph, {f"fc.{k}": v.numpy() for k, v in twin.state_dict().items()})
    expected = twin(torch.from_numpy(x).permute(0, 3, 1, 2).flatten(1)).detach().numpy()
    close(graph.forward(x)[0][0], expected)
    np.testing.assert_array_equal(checkpoint.state_dict(graph)["fc.weight"], twin.weight.detach().numpy())


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_with_residual_equals_torch(relu: bool) -> None:
    rng = np.random.default_rng(5)
    graph, _ = alone(nn.BatchNorm2d(4, residual=True, relu=relu), 2)
    x, r, dy = (images(rng, 3, 5, 4, 4) for _ in range(3))
    (y,), saved = graph.forward(x, r)
    dx, dr = graph.backward((dy,), saved, input_gradients=True)
    tx, tr = to_torch(x).requires_grad_(), to_torch(r).requires_grad_()
    twin = torch.nn.BatchNorm2d(4).double()
    expected = twin(tx) + tr
    expected = expected.relu() if relu else expected
    expected.backward(to_torch(dy))
    close(y, from_torch(expected))
    close(dx, from_torch(tx.grad))
    close(dr, from_torch(tr.grad))
    close(graph["layer"].g["weight"], twin.weight.grad.numpy())


def test_add_and_concat() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (images(rng, 2, 3, 4, 5) for _ in range(3))
    graph, _ = alone(nn.Add(), 3)
    (y,), saved = graph.forward(a, b, c)
    np.testing.assert_array_equal(y, a + b + c)
    for dx in graph.backward((c,), saved, input_gradients=True):
        np.testing.assert_array_equal(dx, c)
    graph, _ = alone(nn.Concat(), 2)
    wide = images(rng, 2, 3, 4, 2)
    (y,), saved = graph.forward(a, wide)
    np.testing.assert_array_equal(y, np.concatenate((a, wide), -1))
    da, dwide = graph.backward((y,), saved, input_gradients=True)
    np.testing.assert_array_equal(da, a)
    np.testing.assert_array_equal(dwide, wide)


def test_dropout_depends_on_samples_not_on_ranks() -> None:
    x = np.ones((8, 4, 4, 6), np.float32)
    graph, _ = alone(nn.Dropout(0.3))
    context = nn.Context(seed=4, step=9)
    (whole,), saved = graph.forward(x, context=context)
    kept = whole != 0
    assert 0.6 < kept.mean() < 0.8
    np.testing.assert_allclose(whole[kept], 1 / 0.7, rtol=1e-6)
    (dx,) = graph.backward((x,), saved, input_gradients=True)
    np.testing.assert_array_equal(dx, whole)
    parts = [
        graph.forward(x[a:b], context=nn.Context(seed=4, step=9, first_sample=a))[0][0] for a, b in ((0, 3), (3, 8))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in (nn.Context(seed=5, step=9), nn.Context(seed=4, step=8)):
        assert (graph.forward(x, context=other)[0][0] != whole).any()
    named = nn.Graph()
    named.add("another", nn.Dropout(0.3))
    assert (named.forward(x, context=context)[0][0] != whole).any()
    assert graph.forward(x, context=nn.Context(train=False))[0][0] is x


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="groups is 3, expected a divisor of 4 and 6"):
        nn.Conv2d(4, 6, 3, groups=3)
    with pytest.raises(ValueError, match="p is 1"):
        nn.Dropout(1)
    with pytest.raises(ValueError, match="flattened"):
        nn.Linear(5, 2, flattened=(2, 2, 2))
    with pytest.raises(ValueError, match=r"init names \['wieght'\]"):
        nn.Conv2d(4, 6, 3, init={"wieght": nn.constant(0)})
    with pytest.raises(ValueError, match="padding"):
        nn.MaxPool2d(2, padding=2)
    with pytest.raises(ValueError, match="1 value per channel"):
        alone(nn.BatchNorm2d(3))[0].forward(np.zeros((1, 1, 1, 3), np.float32))
