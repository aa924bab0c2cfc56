"""AlexNet as torchvision has it (Krizhevsky 2014, "One weird trick": one column, no response normalisation)."""

from __future__ import annotations

from medmpi import nn

# Below these a pooling window no longer fits into its map.
MINIMUM = {"small": 15, "imagenet": 63}


def alexnet(*, classes: int, channels: int, stem: str, dropout: float = 0.5) -> nn.Graph:
    """AlexNet with torchvision's module names. Logits have shape (N, classes).

    The "imagenet" stem is 11x11 stride 4, and the classifier reads a 6x6 map. The "small" one, for 28 to 64 pixels, is
    3x3 stride 1 and the classifier reads 2x2; everything between them is the same, so weights of `features.3` to
    `features.10` fit both.
    """
    g = nn.Graph()
    small = stem == "small"
    first = nn.Conv2d(channels, 64, 3, padding=1) if small else nn.Conv2d(channels, 64, 11, stride=4, padding=2)
    layers: tuple[nn.Layer, ...] = (
        first,
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
    )
    x = 0
    for i, layer in enumerate(layers):
        x = g.add(f"features.{i}", layer, x)
    size = 2 if small else 6
    x = g.add("avgpool", nn.AdaptiveAvgPool2d((size, size)), x)
    x = g.add("flatten", nn.Flatten(), x)
    x = g.add("classifier.0", nn.Dropout(dropout), x)
    x = g.add("classifier.1", nn.Linear(256 * size * size, 4096, flattened=(size, size, 256)), x)
    x = g.add("classifier.2", nn.ReLU(), x)
    x = g.add("classifier.3", nn.Dropout(dropout), x)
    x = g.add("classifier.4", nn.Linear(4096, 4096), x)
    x = g.add("classifier.5", nn.ReLU(), x)
    g.add("classifier.6", nn.Linear(4096, classes), x)
    return g
