"""MiniXception: a small network of depthwise separable convolutions, the Keras model of S3-08.

Two 3x3 convolutions (32, 64), four residual blocks of two separable convolutions (64) at full resolution with identity
shortcuts, two separable convolutions (128), "same" max pooling 3x3 stride 2, global average, dense 64, dense classes.
For 32x32x3 and 10 classes: 94,474 parameters and 1,728 running statistics, 96,202 values as Keras counts them.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from medmpi import nn
from medmpi.kernels.arrays import Array

BLOCKS = 4
MINIMUM = 2  # the one pooling must see two pixels


def _glorot(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Keras's default. Keras exchanges the fans of a depthwise filter; their sum is the same."""
    return nn.uniform(sqrt(6 / (fan_in + fan_out)))(rng, shape, fan_in, fan_out)


INIT = {"weight": _glorot}
INIT_WITH_BIAS = {"weight": _glorot, "bias": nn.constant(0.0)}


def mini_xception(
    *, classes: int, channels: int, image_size: tuple[int, int], width: int = 64, momentum: float = 0.1
) -> nn.Graph:
    """MiniXception with `width` channels in the middle, half of it in the first convolution, twice in the exit.

    Logits have shape (N, classes). Weights start from Keras's Glorot uniform, biases from zero; BatchNorm has Keras's
    eps 1e-3. Its running statistics move by torch's 0.1 a step: Keras's 0.01 leaves them at their start for hundreds of
    steps, which ruins evaluation on small data sets and changes nothing in training; `momentum` restores it.
    ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"mini_xception: width is {width}, expected an even number")
    g = nn.Graph()

    def norm(name: str, k: int, x: int, *residual: int, relu: bool = True) -> int:
        layer = nn.BatchNorm2d(k, eps=1e-3, momentum=momentum, relu=relu, residual=bool(residual))
        return g.add(name, layer, x, *residual)

    half, twice = width // 2, 2 * width
    x = g.add("entry.conv1", nn.Conv2d(channels, half, 3, padding=1, init=INIT_WITH_BIAS), 0)
    x = norm("entry.bn1", half, x)
    x = g.add("entry.conv2", nn.Conv2d(half, width, 3, padding=1, init=INIT_WITH_BIAS), x)
    x = norm("entry.bn2", width, x)
    for i in range(BLOCKS):
        y = _separable(g, f"middle.{i}.conv1", x, width, width)
        y = norm(f"middle.{i}.bn1", width, y)
        y = _separable(g, f"middle.{i}.conv2", y, width, width)
        x = norm(f"middle.{i}.bn2", width, y, x, relu=False)
    x = _separable(g, "exit.conv1", x, width, twice)
    x = norm("exit.bn1", twice, x)
    x = _separable(g, "exit.conv2", x, twice, twice)
    x = norm("exit.bn2", twice, x)
    # Keras's "same": an odd side is padded on both ends, an even one at its end only, which is what ceil_mode does
    h, w = image_size
    x = g.add("maxpool", nn.MaxPool2d(3, stride=2, padding=(h % 2, w % 2), ceil_mode=True), x)
    x = g.add("avgpool", nn.GlobalAvgPool2d(), x)
    x = g.add("fc1", nn.Linear(twice, width, init=INIT_WITH_BIAS), x)
    x = g.add("relu", nn.ReLU(), x)
    g.add("fc2", nn.Linear(width, classes, init=INIT_WITH_BIAS), x)
    return g


def _separable(g: nn.Graph, at: str, x: int, c: int, k: int) -> int:
    """Keras's SeparableConv2D: 3x3 depthwise without bias, 1x1 with bias."""
    depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False, init=INIT)
    x = g.add(f"{at}.depthwise", depthwise, x)
    return g.add(f"{at}.pointwise", nn.Conv2d(c, k, 1, init=INIT_WITH_BIAS), x)
