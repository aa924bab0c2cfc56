"""Inception v1 with BatchNorm: torchvision's GoogLeNet without auxiliary heads (Szegedy et al. 2015, table 1)."""

from __future__ import annotations

from medmpi import nn

# (1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection) of table 1; a number is a max pooling of that window.
BLOCKS: dict[str, tuple[int, int, int, int, int, int] | int] = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": 3,
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": 2,
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
INIT = {"weight": nn.truncated_normal(0.01)}
# Every strided layer must still see two pixels.
MINIMUM = {"small": 5, "imagenet": 17}


def inception_v1(*, classes: int, channels: int, stem: str, dropout: float = 0.2, kernel5: bool = False) -> nn.Graph:
    """Inception v1 with torchvision's module names. Logits have shape (N, classes).

    The third branch of each block convolves 3x3, as torchvision's does (its published weights have that shape); the
    paper's 5x5 comes with `kernel5`. The "imagenet" stem is 7x7 stride 2 and a max pooling; "small" is 3x3 stride 1
    and no first pooling. Weights start from N(0, 0.01^2) as in torchvision.
    """
    g = nn.Graph()
    if stem == "small":
        x = _conv(g, "conv1", 0, channels, 64, 3)
    else:
        x = _conv(g, "conv1", 0, channels, 64, 7, stride=2)
        x = g.add("maxpool1", nn.MaxPool2d(3, stride=2, ceil_mode=True), x)
    x = _conv(g, "conv2", x, 64, 64, 1)
    x = _conv(g, "conv3", x, 64, 192, 3)
    x = g.add("maxpool2", nn.MaxPool2d(3, stride=2, ceil_mode=True), x)
    c = 192
    for name, block in BLOCKS.items():
        if isinstance(block, int):
            x = g.add(name, nn.MaxPool2d(block, stride=2, ceil_mode=True), x)
        else:
            x = _inception(g, name, x, c, block, 5 if kernel5 else 3)
            c = block[0] + block[2] + block[4] + block[5]
    x = g.add("avgpool", nn.GlobalAvgPool2d(), x)
    x = g.add("dropout", nn.Dropout(dropout), x)
    g.add("fc", nn.Linear(c, classes, init=INIT), x)
    return g


def _inception(g: nn.Graph, at: str, x: int, c: int, widths: tuple[int, int, int, int, int, int], kernel: int) -> int:
    k1, r3, k3, r5, k5, pool = widths
    branch1 = _conv(g, f"{at}.branch1", x, c, k1, 1)
    branch2 = _conv(g, f"{at}.branch2.1", _conv(g, f"{at}.branch2.0", x, c, r3, 1), r3, k3, 3)
    branch3 = _conv(g, f"{at}.branch3.1", _conv(g, f"{at}.branch3.0", x, c, r5, 1), r5, k5, kernel)
    pooled = g.add(f"{at}.branch4.0", nn.MaxPool2d(3, stride=1, padding=1), x)
    branch4 = _conv(g, f"{at}.branch4.1", pooled, c, pool, 1)
    return g.add(f"{at}.concat", nn.Concat(), branch1, branch2, branch3, branch4)


def _conv(g: nn.Graph, at: str, x: int, c: int, k: int, kernel: int, stride: int = 1) -> int:
    """torchvision's BasicConv2d: convolution without bias, BatchNorm with eps 1e-3, ReLU."""
    conv = nn.Conv2d(c, k, kernel, stride=stride, padding=kernel // 2, bias=False, init=INIT)
    return g.add(f"{at}.bn", nn.BatchNorm2d(k, eps=1e-3, relu=True), g.add(f"{at}.conv", conv, x))
