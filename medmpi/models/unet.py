"""U-Net (Ronneberger et al. 2015) with BatchNorm and padded convolutions, module names of milesial/Pytorch-UNet."""

from __future__ import annotations

from medmpi import nn

LEVELS = 4
MINIMUM = 1 << LEVELS  # one pixel at the bottom


def unet(*, classes: int, channels: int, image_size: tuple[int, int], width: int = 64) -> nn.Graph:
    """U-Net with `width` channels at full resolution, doubled on each of four levels. Logits: (N, H, W, classes).

    A side that 16 does not divide loses its last row at a pooling; on the way up the map is padded with zeros to its
    skip connection's size.
    """
    g = nn.Graph()
    sizes, widths = [image_size], [width << i for i in range(LEVELS + 1)]
    x = _double(g, "inc", 0, channels, width)
    skips = [x]
    for i in range(1, LEVELS + 1):
        h, w = sizes[-1]
        sizes.append((h // 2, w // 2))
        x = g.add(f"down{i}.maxpool_conv.0", nn.MaxPool2d(2), x)
        x = _double(g, f"down{i}.maxpool_conv.1", x, widths[i - 1], widths[i])
        skips.append(x)
    for i in range(1, LEVELS + 1):
        level = LEVELS - i
        c, k = widths[level + 1], widths[level]
        x = g.add(f"up{i}.up", nn.ConvTranspose2d(c, k, 2, stride=2), x)
        (h, w), (low_h, low_w) = sizes[level], sizes[level + 1]
        if (h, w) != (2 * low_h, 2 * low_w):
            x = g.add(f"up{i}.pad", nn.Pad2d(((0, h - 2 * low_h), (0, w - 2 * low_w))), x)
        x = g.add(f"up{i}.concat", nn.Concat(), skips[level], x)
        x = _double(g, f"up{i}.conv", x, c, k)
    g.add("outc.conv", nn.Conv2d(width, classes, 1), x)
    return g


def _double(g: nn.Graph, at: str, x: int, c: int, k: int) -> int:
    """(3x3 convolution without bias, BatchNorm, ReLU) twice."""
    for i, channels in ((0, c), (3, k)):
        x = g.add(f"{at}.double_conv.{i}", nn.Conv2d(channels, k, 3, padding=1, bias=False), x)
        x = g.add(f"{at}.double_conv.{i + 1}", nn.BatchNorm2d(k, relu=True), x)
    return x
