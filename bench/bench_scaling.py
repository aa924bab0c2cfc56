"""How cost grows with the batch and with the image, and what a second thread brings: curves that ought to be lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmpi import kernels as K
from medmpi import models, nn

from .harness import Case, Work, measure
from .machine import Gate, describe

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (16, 32, 64, 128, 256)


@dataclass
class Curve:
    """One kind of work over a growing amount; ``amount`` is in images or in thousands of pixels."""

    name: str
    unit: str
    points: dict[float, Callable[[], Work]]


def conv(direction: str, batch: int, side: int, channels: int = 64) -> Work:
    """A 3x3 convolution of as many input as output channels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, side, side, channels), dtype=np.float32)
    weight = rng.standard_normal((3, 3, channels, channels), dtype=np.float32)
    out = K.empty(x.shape)
    if direction == "forward":
        return lambda: K.conv2d(x, weight, padding=1, out=out)
    if direction == "data":
        return lambda: K.conv2d_backward_data(x, weight, x_shape=x.shape, padding=1, out=out)
    gradient = np.zeros_like(weight)
    return lambda: K.conv2d_backward_weight(x, x, weight_shape=weight.shape, padding=1, out=gradient)


def step(batch: int, side: int) -> Work:
    """A training step of ResNet-18."""
    graph = models.build("resnet18", classes=10, channels=3, image_size=side).fuse()
    parameters = nn.Parameters(graph, seed=0)
    optimizer, loss = nn.SGD(parameters, lr=1e-3, momentum=0.9), nn.CrossEntropy()
    x = np.random.default_rng(0).standard_normal((batch, side, side, 3), dtype=np.float32)
    labels = np.arange(batch) % 10

    def work() -> None:
        parameters.zero_grad()
        (logits,), saved = graph.forward(x, context=nn.Context(train=True))
        graph.backward((loss(logits, labels)[1],), saved)
        optimizer.step()

    return work


def curves() -> Iterator[Curve]:
    """Convolutions by direction and a whole step, over batches and over sides."""
    for direction in ("forward", "data", "weight"):
        by_batch = {float(n): (lambda n=n, d=direction: conv(d, n, 32)) for n in BATCHES}
        by_side = {s * s / 1e3: (lambda s=s, d=direction: conv(d, 4, s)) for s in SIDES}
        yield Curve(f"conv 3x3 64@32 {direction}", "images", by_batch)
        yield Curve(f"conv 3x3 64, batch 4, {direction}", "kpixels", by_side)
    yield Curve("resnet18 32x32 step", "images", {float(n): (lambda n=n: step(n, 32)) for n in BATCHES})


def on(threads: int, work: Work) -> Work:
    """The work on so many threads."""

    def run() -> Any:
        K.set_threads(threads)
        return work()

    return run


def main(options: argparse.Namespace) -> int:
    """Measures every point on one and on two threads in turn, prints and writes a row for each."""
    gate, machine = Gate(), describe()
    lines = []
    for curve in curves():
        if options.only not in curve.name:
            continue
        rows = []
        for amount, make in curve.points.items():
            work = make()
            case = Case(curve.name, {"medmpi": on(1, work), "medmpi_2_threads": on(2, work)})
            timings = measure(case, gate, seconds=options.seconds)
            one, two = timings["medmpi"].best, timings["medmpi_2_threads"].best
            rows.append((amount, one, two))
            lines.append(
                {
                    "family": "scaling", "case": curve.name, "unit": curve.unit, "amount": amount, "seconds": one,
                    "seconds_2_threads": two, "speedup": round(one / two, 3), "machine": machine,
                }
            )  # fmt: skip
        amounts, seconds = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        exponent = float(np.polyfit(np.log(amounts[-4:]), np.log(seconds[-4:]), 1)[0])
        print(f"{curve.name}: cost grows with {curve.unit} to the power of {exponent:.2f} at the large end")
        for amount, one, two in rows:
            each = one / amount * 1e6
            print(
                f"  {amount:8.2f} {curve.unit:8s} {one * 1e3:9.3f} ms  {each:9.2f} us each  2 threads x{one / two:.2f}"
            )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return 0
