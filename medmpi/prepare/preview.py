"""A picture of an image before and after: the file as a viewer shows it, and the result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medmpi.data.errors import DataError
from medmpi.data.medical import Levels, MedicalImage, to_levels
from medmpi.prepare.png import encode_png

_SIDE = 384
_GAP, _HEAD = 8, 16


def draw_preview(image: MedicalImage, after: NDArray[Any]) -> bytes:
    """Two pictures side by side, no larger than 384 pixels each, as PNG."""
    try:
        before = to_levels(image, Levels("auto", nan="fill"), frame=0)[0]
    except DataError:  # the result has other levels: those of --window
        before = to_levels(image, Levels("full", nan="fill"), frame=0)[0]
    if after.dtype == np.uint16:
        after = (after >> 8).astype(np.uint8)
    left, right = _small(before), _small(after)
    sheet = Image.new("RGB", (left.width + right.width + _GAP, max(left.height, right.height) + _HEAD), "white")
    draw = ImageDraw.Draw(sheet)
    for picture, x, shape, word in (
        (left, 0, before.shape, "before"),
        (right, left.width + _GAP, after.shape, "after"),
    ):
        sheet.paste(picture, (x, _HEAD))
        draw.text((x + 2, 2), f"{word} {shape[0]}x{shape[1]}", fill="black")
    return encode_png(np.asarray(sheet))


def _small(pixels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_SIDE, _SIDE))
    return picture.convert("RGB")
