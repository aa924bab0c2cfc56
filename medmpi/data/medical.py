"""What a medical image file holds once it is decoded: pixels as stored, what they mean, and where they lie.

The way from stored values to the grey levels that a network sees has three steps, each of DICOM PS3.3 and each
optional: the modality transformation (C.11.1: rescale slope and intercept, or a table), the values of interest (C.11.2:
a window or a table), and the inversion of MONOCHROME1. ``to_levels`` is the last two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Window: TypeAlias = tuple[float, float] | Literal["auto", "full", "bits"]
_BLOCK = 1 << 14  # pixels looked up at a time: their indices stay in the second-level cache
_PERCENTILES = (0.5, 99.5)
LARGEST_PIXELS = 1 << 26
"""Of a frame that is read: 67 million; a mammogram of 4800 x 6000 has 29."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself, before any pixel is decoded.

    ``group`` names the patient where the file does; it is for splitting and is printed nowhere.
    """

    image_size: tuple[int, int]
    grey: bool
    frames: int = 1
    group: str | None = None
    format: str = "picture"


@dataclass(frozen=True)
class MedicalImage:
    """A decoded file.

    ``pixels`` (frames, h, w, c), c 1 or 3: physical values (the modality transformation is done), in the smallest dtype
    that holds them: DICOM of 16 bits stays 16 bits. ``bits`` are the significant bits of a whole-numbered file;
    ``limits`` are the physical values of the smallest and the largest that they can hold, where these were rescaled.
    ``spacing`` is (row, column) in mm. ``affine`` maps (column, row, frame, 1) to mm in RAS+ coordinates. ``window`` is
    the file's own (centre, width), ``window_function`` how it maps values (DICOM's LINEAR, LINEAR_EXACT or SIGMOID),
    ``table`` its own values-of-interest table (first input, levels 0..1).
    """

    path: str
    pixels: NDArray[Any]
    format: str
    bits: int
    spacing: tuple[float, float] | None = None
    affine: NDArray[np.float64] | None = None
    limits: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    window_function: str = "LINEAR"
    table: tuple[float, NDArray[np.float64]] | None = None
    inverted: bool = False
    group: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    _found: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def frames(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def grey(self) -> bool:
        return bool(self.pixels.shape[3] == 1)


@dataclass(frozen=True)
class Levels:
    """How values become grey levels.

    ``window`` "auto": the file's own window or table; without one, pixels of 8 bits stay as they are, PNG and TIFF use
    the whole range of ``bits``, DICOM and arrays their smallest to largest value, NIfTI its 0.5 to 99.5
    percentile over the volume.
    "full": smallest to largest value of the file. "bits": the whole range of the file's bits, so that a level means
    the same in every file. (centre, width): that window. ``nan`` "error" refuses NaN and infinities, "fill" takes them
    for the lowest value.
    """

    window: Window = "auto"
    bits: int = 16
    nan: Literal["error", "fill"] = "error"


def to_levels(image: MedicalImage, levels: Levels, *, depth: int = 8, frame: int | None = None) -> NDArray[Any]:
    """Grey levels of ``depth`` 8 or 16 bits, uint8 or uint16 (frames, h, w, c), of all frames or (1, h, w, c) of one.

    An image of one value only is 0 everywhere. DataError for pixels that are not finite, or beyond ``bits``.
    """
    pixels = image.pixels if frame is None else image.pixels[frame : frame + 1]
    top, dtype = 2**depth - 1, np.uint8 if depth == 8 else np.uint16
    if pixels.dtype.kind == "f":
        pixels = _finite(image, pixels, levels.nan)
    as_they_are = image.bits == depth and pixels.dtype == dtype and not image.inverted
    if as_they_are and (image.pixels.shape[3] == 3 or (levels.window == "auto" and not _has_own(image))):
        return pixels
    limits: tuple[float, float] | None = None
    if not (levels.window == "auto" and image.table is not None and image.grey):
        limits = _limits(image, pixels, levels)
        if not limits[1] > limits[0]:
            return np.full(pixels.shape, top if image.inverted else 0, dtype)

    def mapped(values: NDArray[Any]) -> NDArray[Any]:
        if limits is None:
            assert image.table is not None
            first, table = image.table
            shares = table[np.clip(np.rint(values - first), 0, len(table) - 1).astype(np.int64)]
        elif image.window is not None and levels.window == "auto" and image.window_function == "SIGMOID":
            centre, width = image.window  # PS3.3 C.11.2.1.3.1
            shares = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values.astype(np.float64) - centre) / width, -700, 700)))
        else:
            shares = (values.astype(np.float64) - limits[0]) / (limits[1] - limits[0])
        shares = np.clip(shares, 0.0, 1.0)
        return np.asarray(np.floor((1.0 - shares if image.inverted else shares) * top + 0.5), dtype)

    if pixels.dtype.kind in "iu" and pixels.size:
        first, last = int(pixels.min()), int(pixels.max())
        if last - first < min(pixels.size, 1 << 17):  # each value once, and then a look-up
            if first >= 0 and last < 1 << 16:
                return _looked_up(mapped(np.arange(last + 1)), pixels, 0)
            return _looked_up(mapped(np.arange(first, last + 1)), pixels, first)
    return mapped(pixels)


def _looked_up(table: NDArray[Any], pixels: NDArray[Any], first: int) -> NDArray[Any]:
    """The table's entry of each pixel less ``first``; block by block, since numpy makes indices of 8 bytes of them."""
    out = np.empty(pixels.shape, table.dtype)
    flat, target = np.ascontiguousarray(pixels).reshape(-1), out.reshape(-1)
    for at in range(0, flat.size, _BLOCK):
        part = flat[at : at + _BLOCK].astype(np.intp)
        if first:
            part -= first
        np.take(table, part, out=target[at : at + _BLOCK], mode="clip")  # all are within; clip checks nothing
    return out


def _has_own(image: MedicalImage) -> bool:
    return image.window is not None or image.table is not None


def _limits(image: MedicalImage, pixels: NDArray[Any], levels: Levels) -> tuple[float, float]:
    """The values that become black and white."""
    window = levels.window
    if window == "auto" and image.window is not None:
        window = image.window
    if isinstance(window, tuple):
        # PS3.3 C.11.2.1.2.1: the window of width w reaches from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
        centre, width = window
        exact = image.window_function == "LINEAR_EXACT" and levels.window == "auto"
        if width < 1 or exact or image.pixels.dtype.kind == "f":
            return centre - width / 2, centre + width / 2
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + max(width - 1, 1e-6) / 2
    if window == "bits" or (window == "auto" and (image.format == "picture" or image.bits == 8 or not image.grey)):
        if pixels.dtype.kind == "f":
            cause = "it has floating-point pixels, which have no range of bits"
            raise DataError(image.path, cause, "give ?window=full or ?window=C/W")
        if image.limits is not None:
            return image.limits
        if not image.bits:
            cause = "its values are scaled or without a range of bits, so window=bits says nothing of them"
            raise DataError(image.path, cause, "give window auto, full or CENTRE/WIDTH")
        bits = min(levels.bits, 16) if image.format == "picture" and image.bits > 8 else image.bits
        low, high = (0, 2**bits - 1) if pixels.dtype.kind in "bu" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if image.format == "picture" and pixels.size and not (pixels.min() >= low and pixels.max() <= high):
            outside = pixels.max() if pixels.max() > high else pixels.min()
            advice = "give the right ?bits=" if bits < 16 else "give ?window=full or ?window=C/W"
            raise DataError(image.path, f"its pixels reach {outside}, beyond {bits} bits", advice)
        return low, high
    name = str(window)
    if name not in image._found:
        image._found[name] = _range(image, window)
    return image._found[name]


def _range(image: MedicalImage, window: Window) -> tuple[float, float]:
    """The values of a whole file that become black and white; once, not for each frame."""
    whole = image.pixels
    if whole.dtype.kind == "f":
        whole = whole[np.isfinite(whole)]
    if not whole.size:
        return 0.0, 0.0
    if window == "auto" and image.format == "nifti":
        low, high = np.percentile(whole, _PERCENTILES)
        if high > low:
            return float(low), float(high)
    return float(whole.min()), float(whole.max())


def _finite(image: MedicalImage, pixels: NDArray[Any], nan: str) -> NDArray[Any]:
    good = np.isfinite(pixels)
    if good.all():
        return pixels
    if nan == "error":
        count = int(good.size - good.sum())
        raise DataError(image.path, f"{count} of its pixels are NaN or infinite", "give ?nan=fill, or take it out")
    lowest = pixels[good].min() if good.any() else 0
    return np.where(good, pixels, lowest)


def parse_window(text: str) -> Window:
    """auto, full, bits, or CENTRE/WIDTH; ValueError otherwise."""
    if text in ("auto", "full", "bits"):
        return text  # type: ignore[return-value]
    centre, slash, width = text.partition("/")
    try:
        found = float(centre), float(width)
    except ValueError:
        found = (np.nan, np.nan)
    if not slash or not all(np.isfinite(found)) or found[1] <= 0:
        raise ValueError(f"window is {text}, expected auto, full, bits or CENTRE/WIDTH, for example 40/400")
    return found
