"""The same networks in torch, with torchvision's module names: the oracles of the parity tests.

Nothing here imports medmpi. Each class follows the public definition it names, so that a checkpoint of that definition
loads with `strict=True`; MiniXception follows the Keras model of the S3-08 reproduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """torchvision.models.resnet.BasicBlock."""

    expansion = 1

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, k, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(k)
        self.conv2 = nn.Conv2d(k, k, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(k)
        self.downsample = downsample(c, k, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """torchvision.models.resnet.Bottleneck (the stride sits in the 3x3 convolution)."""

    expansion = 4

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, k, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(k)
        self.conv2 = nn.Conv2d(k, k, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(k)
        self.conv3 = nn.Conv2d(k, 4 * k, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * k)
        self.downsample = downsample(c, 4 * k, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def downsample(c: int, k: int, stride: int) -> nn.Module | None:
    """The projection of a shortcut whose ends differ in shape."""
    if stride == 1 and c == k:
        return None
    return nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))


class ResNet(nn.Module):
    """torchvision.models.ResNet; stem "small" is 3x3 stride 1 without the max pooling."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        classes: int,
        channels: int,
        stem: str,
        width: int = 64,
    ) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        c = width
        for stage, depth in enumerate(depths):
            k = width << stage
            blocks = []
            for i in range(depth):
                blocks.append(block(c, k, 2 if stage and i == 0 else 1))
                c = k * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class AlexNet(nn.Module):
    """torchvision.models.AlexNet; stem "small" has a 3x3 stride 1 first convolution and pools adaptively to 2x2."""

    def __init__(self, classes: int, channels: int, stem: str, dropout: float = 0.5) -> None:
        super().__init__()
        small = stem == "small"
        size = 2 if small else 6
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 1, 1) if small else nn.Conv2d(channels, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((size, size))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * size * size, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class BasicConv2d(nn.Module):
    """torchvision.models.googlenet.BasicConv2d: convolution without bias, BatchNorm with eps 1e-3, ReLU."""

    def __init__(self, c: int, k: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, k, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(k, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """torchvision.models.googlenet.Inception; `kernel5` gives its third branch the paper's 5x5 filter."""

    def __init__(self, c: int, k1: int, r3: int, k3: int, r5: int, k5: int, pool: int, kernel5: bool) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(c, k1, 1)
        self.branch2 = nn.Sequential(BasicConv2d(c, r3, 1), BasicConv2d(r3, k3, 3, padding=1))
        third = BasicConv2d(r5, k5, 5, padding=2) if kernel5 else BasicConv2d(r5, k5, 3, padding=1)
        self.branch3 = nn.Sequential(BasicConv2d(c, r5, 1), third)
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv2d(c, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """torchvision.models.GoogLeNet(aux_logits=False, transform_input=False)."""

    def __init__(self, classes: int, channels: int, stem: str, dropout: float = 0.2, kernel5: bool = False) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = BasicConv2d(channels, 64, 3, 1, 1) if small else BasicConv2d(channels, 64, 7, 2, 3)
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, kernel5)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, kernel5)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, kernel5)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, kernel5)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, kernel5)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, kernel5)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, kernel5)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, kernel5)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, kernel5)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(m.weight, mean=0.0, std=0.01, a=-2, b=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4a(self.maxpool3(x))
        x = self.inception4e(self.inception4d(self.inception4c(self.inception4b(x))))
        x = self.inception5b(self.inception5a(self.maxpool4(x)))
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


class SeparableConv2d(nn.Module):
    """Keras's SeparableConv2D: 3x3 depthwise without bias, then 1x1 with bias."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.pointwise = nn.Conv2d(c, k, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class MiniXception(nn.Module):
    """The Keras MiniXception of S3-08: identity residuals at full resolution, 94,474 parameters for 10 classes."""

    class Flow(nn.Module):
        """Two convolutions, each with BatchNorm (Keras's eps)."""

        def __init__(self, first: nn.Module, k1: int, second: nn.Module, k2: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = first, nn.BatchNorm2d(k1, eps=1e-3)
            self.conv2, self.bn2 = second, nn.BatchNorm2d(k2, eps=1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def __init__(self, classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        half, twice = width // 2, 2 * width
        self.entry = self.Flow(
            nn.Conv2d(channels, half, 3, padding=1), half, nn.Conv2d(half, width, 3, padding=1), width
        )
        self.middle = nn.ModuleList(
            self.Flow(SeparableConv2d(width, width), width, SeparableConv2d(width, width), width) for _ in range(4)
        )
        self.exit = self.Flow(SeparableConv2d(width, twice), twice, SeparableConv2d(twice, twice), twice)
        self.fc1 = nn.Linear(twice, width)
        self.fc2 = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.entry(x))
        for block in self.middle:
            x = block(x) + x
        x = F.relu(self.exit(x))
        # Keras's "same" pooling puts the odd row of padding last; -inf never wins a maximum
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:]]
        (h, w), inf = pads, -torch.inf
        x = F.max_pool2d(F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2), value=inf), 3, 2)
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


class DoubleConv(nn.Module):
    """milesial/Pytorch-UNet DoubleConv: (3x3 convolution without bias, BatchNorm, ReLU) twice."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(c, k, 3, padding=1, bias=False),
            nn.BatchNorm2d(k),
            nn.ReLU(),
            nn.Conv2d(k, k, 3, padding=1, bias=False),
            nn.BatchNorm2d(k),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """milesial/Pytorch-UNet Down."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(c, k))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """milesial/Pytorch-UNet Up(bilinear=False): the upsampled map is zero-padded to its skip connection's size."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c, c // 2, 2, 2)
        self.conv = DoubleConv(c, k)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        h, w = (skip.size(d) - x.size(d) for d in (2, 3))
        x = F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2])
        return self.conv(torch.cat([skip, x], 1))


class OutConv(nn.Module):
    """milesial/Pytorch-UNet OutConv."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, k, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """milesial/Pytorch-UNet UNet(bilinear=False) with `width` channels at full resolution (64 there)."""

    def __init__(self, classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.inc = DoubleConv(channels, width)
        for i in range(1, 5):
            setattr(self, f"down{i}", Down(width << (i - 1), width << i))
        for i in range(1, 5):
            setattr(self, f"up{i}", Up(width << (5 - i), width << (4 - i)))
        self.outc = OutConv(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for i in range(1, 5):
            skips.append(getattr(self, f"down{i}")(skips[-1]))
        x = skips.pop()
        for i in range(1, 5):
            x = getattr(self, f"up{i}")(x, skips.pop())
        return self.outc(x)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def build(
    name: str, *, classes: int, channels: int = 3, stem: str = "imagenet", dropout: float | None = None,
    width: int | None = None, kernel5: bool = False,
) -> nn.Module:  # fmt: skip
    """The torch model that `medmpi.models.build` of the same arguments must equal."""
    if name in RESNETS:
        return ResNet(*RESNETS[name], classes, channels, stem, width or 64)
    if name == "alexnet":
        return AlexNet(classes, channels, stem, 0.5 if dropout is None else dropout)
    if name == "inception_v1":
        return GoogLeNet(classes, channels, stem, 0.2 if dropout is None else dropout, kernel5)
    if name == "mini_xception":
        return MiniXception(classes, channels, width or 64)
    if name == "unet":
        return UNet(classes, channels, width or 64)
    raise KeyError(name)
