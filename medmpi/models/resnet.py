"""ResNet-18, -34 and -50 (He et al. 2016), with the stride of a bottleneck in its 3x3 convolution as in torchvision."""

from __future__ import annotations

from medmpi import nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
INIT = {"weight": nn.kaiming_normal("fan_out")}
# Every strided layer must still see two pixels: 16 pixels are one before the last stride of the 7x7 stem's network.
MINIMUM = {"small": 5, "imagenet": 17}


def resnet(name: str, *, classes: int, channels: int, stem: str, width: int = 64) -> nn.Graph:
    """The network `name` of DEPTHS, with torchvision's module names. Logits have shape (N, classes).

    The "imagenet" stem is 7x7 stride 2 and a 3x3 stride 2 max pooling; "small" is 3x3 stride 1 and no pooling. `width`
    is the number of channels of the first stage. Convolutions start from N(0, 2 / fan_out) as in torchvision.
    """
    g = nn.Graph()
    if stem == "small":
        x = _conv_bn(g, "conv1", "bn1", 0, (channels, width, 3))
    else:
        x = _conv_bn(g, "conv1", "bn1", 0, (channels, width, 7), stride=2)
        x = g.add("maxpool", nn.MaxPool2d(3, stride=2, padding=1), x)
    block, expansion = (_bottleneck, 4) if name == "resnet50" else (_basic, 1)
    c = width
    for stage, depth in enumerate(DEPTHS[name]):
        k = width << stage
        for i in range(depth):
            x = block(g, f"layer{stage + 1}.{i}", x, c, k, 2 if stage and i == 0 else 1)
            c = k * expansion
    x = g.add("avgpool", nn.GlobalAvgPool2d(), x)
    g.add("fc", nn.Linear(c, classes), x)
    return g


def _basic(g: nn.Graph, at: str, x: int, c: int, k: int, stride: int) -> int:
    y = _conv_bn(g, f"{at}.conv1", f"{at}.bn1", x, (c, k, 3), stride=stride)
    return _close(g, at, 2, y, x, (k, k, 3), c, stride)


def _bottleneck(g: nn.Graph, at: str, x: int, c: int, k: int, stride: int) -> int:
    y = _conv_bn(g, f"{at}.conv1", f"{at}.bn1", x, (c, k, 1))
    y = _conv_bn(g, f"{at}.conv2", f"{at}.bn2", y, (k, k, 3), stride=stride)
    return _close(g, at, 3, y, x, (k, 4 * k, 1), c, stride)


def _close(g: nn.Graph, at: str, i: int, y: int, x: int, size: tuple[int, int, int], c: int, stride: int) -> int:
    """A block's last convolution, and its BatchNorm with the shortcut's sum and the ReLU in one node."""
    k = size[1]
    if stride != 1 or c != k:
        x = _conv_bn(g, f"{at}.downsample.0", f"{at}.downsample.1", x, (c, k, 1), stride=stride, relu=False)
    y = _conv(g, f"{at}.conv{i}", y, size)
    return g.add(f"{at}.bn{i}", nn.BatchNorm2d(k, relu=True, residual=True), y, x)


def _conv(g: nn.Graph, name: str, x: int, size: tuple[int, int, int], stride: int = 1) -> int:
    c, k, kernel = size
    layer = nn.Conv2d(c, k, kernel, stride=stride, padding=kernel // 2, bias=False, init=INIT)
    return g.add(name, layer, x)


def _conv_bn(
    g: nn.Graph, conv: str, bn: str, x: int, size: tuple[int, int, int], *, stride: int = 1, relu: bool = True
) -> int:
    return g.add(bn, nn.BatchNorm2d(size[1], relu=relu), _conv(g, conv, x, size, stride))
