"""From a file to the uint8 pixels that a network is fed with, the same way in training and in inference.

A model's checkpoint keeps the ``Reading`` of its data set, so that a file given to it later is read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .medical import Levels, MedicalImage, parse_window, to_levels
from .picture import resize_image, to_channels
from .source import Images

OPTIONS = ("bits", "window", "nan")
EXPECTED = "bits=8..16, window=auto|full|bits|CENTRE/WIDTH, nan=error|fill"


@dataclass(frozen=True)
class Reading:
    """How values become levels, across which axis volumes are cut, and how images of several sizes become one.

    With a ``canvas`` (h, w) an image is laid in its middle, cut or surrounded by black; then, or without one, it is
    stretched to the size asked for.
    """

    levels: Levels = field(default_factory=Levels)
    axis: int = 2
    canvas: tuple[int, int] | None = None

    def frame(self, image: MedicalImage, frame: int, channels: int, image_size: tuple[int, int] | None) -> Images:
        """One frame as uint8 (h, w, channels). DataError for pixels that have no levels (NaN, beyond ``bits``)."""
        return self.fit(to_channels(to_levels(image, self.levels, frame=frame)[0], channels), image_size)

    def fit(self, image: Images, image_size: tuple[int, int] | None) -> Images:
        """uint8 (h, w, c) on the canvas and at the size."""
        return resize_image(image if self.canvas is None else laid(image, self.canvas), image_size)

    def unfit(self, mask: Images, original: tuple[int, int]) -> Images:
        """A mask uint8 (h, w) of a fitted image, at the size of the ``original``: the inverse of ``fit``."""
        from .picture import resize_mask

        if self.canvas is None:
            return resize_mask(mask, original)
        return laid(resize_mask(mask, self.canvas)[..., None], original)[..., 0]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """The inverse of ``to_json``; what is missing has its default. ValueError for values that make no sense."""
        levels = dict(values.get("levels", {}))
        window = levels.get("window", "auto")
        if not isinstance(window, str):
            window = (float(window[0]), float(window[1]))
        elif window not in ("auto", "full", "bits"):
            raise ValueError(f"window is {window!r}")
        canvas = values.get("canvas")
        return cls(
            Levels(window, int(levels.get("bits", 16)), levels.get("nan", "error")),
            int(values.get("axis", 2)),
            None if canvas is None else (int(canvas[0]), int(canvas[1])),
        )


def levels_of(kind: str, options: Mapping[str, str]) -> Levels:
    """The levels that a data spec's options ask for; ValueError names the option."""
    bits, nan = options.get("bits", "16"), options.get("nan", "error")
    if bits not in map(str, range(8, 17)):
        raise ValueError(f"{kind}: option bits={bits}, expected {EXPECTED}")
    if nan not in ("error", "fill"):
        raise ValueError(f"{kind}: option nan={nan}, expected {EXPECTED}")
    try:
        window = parse_window(options.get("window", "auto"))
    except ValueError as error:
        raise ValueError(f"{kind}: option {error}") from None
    return Levels(window, int(bits), "fill" if nan == "fill" else "error")


def laid(image: Images, canvas: tuple[int, int]) -> Images:
    """The middle of an image (h, w, c) in the middle of a black canvas."""
    if image.shape[:2] == canvas:
        return image
    out = np.zeros((*canvas, image.shape[2]), image.dtype)
    source, target = [], []
    for have, want in zip(image.shape[:2], canvas, strict=True):
        n = min(have, want)
        source.append(slice((have - n) // 2, (have - n) // 2 + n))
        target.append(slice((want - n) // 2, (want - n) // 2 + n))
    out[target[0], target[1]] = image[source[0], source[1]]
    return out
