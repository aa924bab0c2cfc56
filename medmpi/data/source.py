"""Where samples come from, and the arrays in memory that most of them are."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .partition import Ids

Images = NDArray[np.uint8]
Targets = NDArray[Any]


class Source(Protocol):
    """Random access to samples: ``images`` uint8 (n, h, w, c) with labels int64 (n,) or masks uint8 (n, h, w)."""

    def __len__(self) -> int: ...

    def read(self, positions: Ids) -> tuple[Images, Targets]: ...


class ArraySource:
    """Samples in memory."""

    def __init__(self, images: Images, targets: Targets) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        return self.images[positions], self.targets[positions]


class ResizedSource:
    """Another source's samples at another size: images bilinear (averaging where they shrink), masks nearest."""

    def __init__(self, source: Source, image_size: tuple[int, int]) -> None:
        self.source, self.image_size = source, image_size

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: Ids) -> tuple[Images, Targets]:
        images, targets = self.source.read(positions)
        masks = targets if targets.ndim == 1 else resize(targets[..., None], self.image_size, nearest=True)[..., 0]
        return resize(images, self.image_size), masks


def resize(images: Images, image_size: tuple[int, int], *, nearest: bool = False) -> Images:
    """uint8 (n, h, w, c) images, c 1 or 3, stretched to ``image_size`` (h, w)."""
    n, h, w, c = images.shape
    if (h, w) == image_size:
        return images
    out = np.empty((n, *image_size, c), dtype=np.uint8)
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    for source, target in zip(images, out, strict=True):
        picture = Image.fromarray(source[..., 0] if c == 1 else source)
        target[...] = np.asarray(picture.resize(image_size[::-1], method)).reshape(target.shape)
    return out


def memory_limit() -> int:
    """Bytes that one data set may hold in memory: half of what the machine has."""
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE")) // 2
