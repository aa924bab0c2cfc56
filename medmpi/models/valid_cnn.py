"""A classifier without any padding, so that the windows of a tile may share every layer (slide.shared)."""

from __future__ import annotations

from medmpi import nn

# Channels of the 3x3 convolutions between poolings of 2.
STAGES = {"imagenet": ((48,), (64, 64), (96, 96, 128)), "small": ((32, 32), (64, 64), (128,))}
MINIMUM = {"small": 24, "imagenet": 79}


def valid_cnn(*, classes: int, channels: int, stem: str, dropout: float = 0.2) -> nn.Graph:
    """Convolutions (BatchNorm, ReLU) and max poolings that read real pixels alone; logits (N, classes).

    The "imagenet" stem is 5x5 stride 2 and the whole has stride 8; "small" has no stem and stride 4.
    """
    g, x, c = nn.Graph(), 0, channels
    if stem == "imagenet":
        x, c = _conv(g, "conv1", x, c, 32, 5, stride=2), 32
    for i, stage in enumerate(STAGES[stem]):
        for j, width in enumerate(stage):
            x, c = _conv(g, f"stage{i + 1}.{j}", x, c, width, 3), width
        if i + 1 < len(STAGES[stem]):
            x = g.add(f"pool{i + 1}", nn.MaxPool2d(2), x)
    x = g.add("avgpool", nn.GlobalAvgPool2d(), x)
    x = g.add("dropout", nn.Dropout(dropout), x)
    g.add("fc", nn.Linear(c, classes), x)
    return g


def _conv(g: nn.Graph, at: str, x: int, c: int, k: int, kernel: int, stride: int = 1) -> int:
    conv = nn.Conv2d(c, k, kernel, stride=stride, bias=False)
    return g.add(f"{at}.bn", nn.BatchNorm2d(k, relu=True), g.add(f"{at}.conv", conv, x))
