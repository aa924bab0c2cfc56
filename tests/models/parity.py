"""Trains the same network here and in torch, and says how far apart the two may end.

The truth is torch in float64. How far float32 arithmetic may stray from it is measured, not guessed: torch itself runs
in float32, once as it is and some times with its weights and images moved by one part in 2^23 (two roundings at the
input). A correct float32 implementation is one more sample of that spread.

One thing must be kept out of it. Where a value lies within rounding of zero, ReLU goes either way, and so does a
maximum between near equals: the gradient then differs by a whole element, not by a rounding, and ten steps amplify it.
So all torch runs take these decisions from our run (`Switched`), which makes them smooth functions of their inputs; the
truth checks that our decisions were wrong at most within rounding of the boundary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from medmpi import nn

EPS = 2.0**-24  # unit roundoff of float32
MOMENTUM = 0.9

Arrays = dict[str, NDArray[np.float64]]


@dataclass
class Batch:
    """Images (N, H, W, C) and labels (N,) or (N, H, W)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass
class Run:
    """What a training run leaves. Arrays are float64 and in torch's layout, logits channels last."""

    logits: NDArray[np.float64]  # of the first batch, before training, in training mode
    gradients: Arrays  # of the first batch
    losses: list[float] = field(default_factory=list)
    state: Arrays = field(default_factory=dict)  # parameters and running statistics at the end
    evaluated: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # logits at the end, evaluation mode
    off: float = 0.0  # of Switched


def set_weights(model: torch.nn.Module) -> None:
    """Weights that make every part of the network count, and are kind to its condition.

    BatchNorm starts with scales and shifts that differ, and scales below one (a deep residual network in which every
    block adds its full weight turns roundings into losses within ten steps); its running statistics start off 0 and 1.
    """
    rng = torch.Generator().manual_seed(7)

    def uniform(like: torch.Tensor, a: float, b: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=rng) * (b - a) + a

    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.copy_(uniform(m.weight, 0.3, 0.8))
                m.bias.copy_(uniform(m.bias, -0.3, 0.5))
                m.running_mean.copy_(uniform(m.bias, -0.5, 0.5))
                m.running_var.copy_(uniform(m.bias, 0.5, 2))
            elif isinstance(m, torch.nn.Conv2d):
                std = (2 / m.weight[0].numel()) ** 0.5
                m.weight.copy_(torch.randn(m.weight.shape, generator=rng) * std)


def batches(count: int, n: int, size: tuple[int, int], channels: int, classes: int, dense: bool) -> list[Batch]:
    """Two random batches in turn: ten steps are enough to learn from them.

    Images are coarse blots in fine noise. In noise alone all images look the same to a deep layer, whose BatchNorm then
    divides by next to nothing: that would measure the network's condition on bad data, not the arithmetic.
    """
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    made: list[Batch] = []
    for _ in range(2):
        labels = rng.integers(classes, size=(n, *size) if dense else (n,))
        blots = torch.from_numpy(rng.standard_normal((n, channels, 3, 3), np.float32))
        smooth = F.interpolate(blots, size=size, mode="bilinear").permute(0, 2, 3, 1).numpy()
        images = 2 * smooth + 0.3 * rng.standard_normal((n, *size, channels), np.float32)
        images += 0.3 * (labels[..., None] if dense else labels[:, None, None, None]).astype(np.float32)
        made.append(Batch(images, labels))
    return [made[i % 2] for i in range(count)]


class Switched(TorchFunctionMode):
    """Makes ReLU and max pooling take recorded decisions, in the order of the calls.

    A record is the ReLU's result, or the pooling's input, of our run (channels last). `off` is the largest value (over
    the root mean square of its array) by which a decision differs from the one that these arrays would give.
    """

    def __init__(self, record: Sequence[NDArray[np.float32]]) -> None:
        super().__init__()
        self.record, self.used, self.off = record, 0, 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.relu:
            return self._relu(args[0])
        if func is F.max_pool2d:
            kwargs.pop("return_indices", None)
            return self._max_pool2d(args[0], *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _next(self) -> torch.Tensor:
        value = torch.from_numpy(self.record[self.used])
        self.used += 1
        return value.permute(0, 3, 1, 2) if value.ndim == 4 else value

    def _note(self, difference: torch.Tensor, x: torch.Tensor) -> None:
        x = x[x.isfinite()]
        self.off = max(self.off, float(difference.abs().max() / x.square().mean().sqrt()))

    def _relu(self, x: torch.Tensor) -> torch.Tensor:
        on = self._next() > 0
        assert on.shape == x.shape, (on.shape, x.shape)
        y = torch.where(on, x, 0)
        self._note(y.detach() - x.detach().clamp_min(0), x.detach())
        return y

    def _max_pool2d(self, x: torch.Tensor, *window: Any, **options: Any) -> torch.Tensor:
        mine = self._next()
        if mine.shape != x.shape:  # the oracle spells out the padding that Keras calls "same"
            h, w = (a - b for a, b in zip(x.shape[2:], mine.shape[2:], strict=True))
            mine = F.pad(mine, (w // 2, w - w // 2, h // 2, h - h // 2), value=-torch.inf)
        assert mine.shape == x.shape, (mine.shape, x.shape)
        _, where = F.max_pool2d(mine, *window, return_indices=True, **options)
        y = x.flatten(2).gather(2, where.flatten(2)).view(where.shape)
        self._note(y.detach() - F.max_pool2d(x.detach(), *window, **options), x.detach())
        return y


def run_torch(
    model: torch.nn.Module,
    data: Sequence[Batch],
    lr: float,
    dtype: torch.dtype,
    record: Sequence[Sequence[NDArray[np.float32]]],
    jitter: int | None = None,
) -> Run:
    """Trains a copy of `model` in `dtype` with step i's decisions from `record[i]`; `jitter` seeds a change of weights
    and images by two roundings."""
    model = copy.deepcopy(model).to(dtype).train()
    rng = torch.Generator().manual_seed(jitter or 0)

    def move(t: torch.Tensor) -> torch.Tensor:
        return t if jitter is None else t * (1 + 2 * EPS * (torch.randint(0, 2, t.shape, generator=rng) * 2 - 1))

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(move(p))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    run: Run | None = None
    off = 0.0
    for batch, switches in zip(data, record, strict=True):
        x = move(torch.from_numpy(batch.images).to(dtype)).permute(0, 3, 1, 2)
        with Switched(switches) as switched:
            y = model(x)
        assert switched.used == len(switches)
        off = max(off, switched.off)
        loss = F.cross_entropy(y, torch.from_numpy(batch.labels))
        optimizer.zero_grad()
        loss.backward()
        if run is None:
            gradients = {k: p.grad.double().numpy().copy() for k, p in model.named_parameters() if p.grad is not None}
            run = Run(_last(y), gradients)
        optimizer.step()
        run.losses.append(loss.item())
    assert run is not None
    run.off = off
    run.state = {k: v.double().numpy().copy() for k, v in model.state_dict().items() if "num_batches" not in k}
    with torch.no_grad():
        run.evaluated = _last(model.eval()(torch.from_numpy(data[0].images).to(dtype).permute(0, 3, 1, 2)))
    return run


def run_here(
    graph: nn.Graph, parameters: nn.Parameters, data: Sequence[Batch], lr: float
) -> tuple[Run, list[list[NDArray[np.float32]]]]:
    """The same training by medmpi, from the weights that the graph holds; also what `Switched` needs of each step."""
    optimizer = nn.SGD(parameters, lr=lr, momentum=MOMENTUM)
    run: Run | None = None
    record: list[list[NDArray[np.float32]]] = []
    for node in graph.nodes:
        _listen(node.layer, record)
    for batch in data:
        record.append([])
        parameters.zero_grad()
        (y,), saved = graph.forward(batch.images, context=nn.Context(train=True))
        loss, dy = nn.CrossEntropy()(y, batch.labels)
        graph.backward((dy,), saved)
        if run is None:
            run = Run(y.astype(np.float64), gradients(graph))
        optimizer.step()
        run.losses.append(loss)
    assert run is not None
    run.state = {k: v.astype(np.float64) for k, v in nn.checkpoint.state_dict(graph).items() if "num_batches" not in k}
    (y,), _ = graph.forward(data[0].images, context=nn.Context(train=False))
    run.evaluated = y.astype(np.float64)
    return run, record


def _listen(layer: nn.Layer, record: list[list[NDArray[np.float32]]]) -> None:
    """Appends a ReLU's result or a max pooling's input to the last list of `record` at each training pass."""
    forward = layer.forward
    pools = isinstance(layer, nn.MaxPool2d)
    if not pools and not isinstance(layer, nn.ReLU) and not getattr(layer, "relu", False):
        return

    def listening(*xs, context, overwrite=False):
        x = xs[0].copy() if pools else None
        y, saved = forward(*xs, context=context, overwrite=overwrite)
        if context.train:
            record[-1].append(y.copy() if x is None else x)
        return y, saved

    layer.forward = listening


def gradients(graph: nn.Graph) -> Arrays:
    """Every parameter's gradient under torch's name and in torch's layout."""
    return {
        f"{node.name}.{name}": np.asarray(node.layer.to_torch(name, g), np.float64)
        for node in graph.nodes
        for name, g in node.layer.g.items()
    }


def _last(y: torch.Tensor) -> NDArray[np.float64]:
    y = y.detach().double()
    return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy().copy()
