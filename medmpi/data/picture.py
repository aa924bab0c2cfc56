"""One PNG, JPEG or TIFF file to one array. Whatever is wrong with the file is a DataError that names it.

A header is checked before any pixel is decoded: a file of a few bytes may claim gigapixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import DataError
from .source import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "TIFF")
_LARGEST_PIXELS = 1 << 26  # 67 million; a mammogram of 4800 x 6000 has 29.
_GREY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"})
_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    image_size: tuple[int, int]
    grey: bool


def read_header(file: Path) -> Header:
    """Size (h, w) and kind of a picture, without decoding it."""
    with _opened(file) as picture:
        return Header(picture.size[::-1], picture.mode in _GREY)


def read_picture(file: Path, *, channels: int, bits: int, image_size: tuple[int, int] | None) -> Images:
    """The picture as uint8 (h, w, channels), stretched to ``image_size`` where given; an alpha channel is dropped.

    Grey pictures of more than 8 bits are scaled by their range of ``bits`` bits, not by their own largest value, so
    that a level means the same in every file. Grey is repeated for three channels.
    """
    with _opened(file) as picture:
        if picture.mode in _DEEP:
            picture = Image.fromarray(_to_bytes(file, np.asarray(picture), bits))
        elif picture.mode == "F":
            raise DataError(file, "it has floating-point pixels", "convert it to 8 or 16 bits")
        picture = picture.convert("L" if channels == 1 else "RGB")
        if image_size is not None:
            picture = picture.resize(image_size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture).reshape(picture.height, picture.width, channels)


def read_mask(file: Path) -> NDArray[np.int64]:
    """The numbers of a mask (h, w): grey levels of 1 to 16 bits, or a palette's indices."""
    with _opened(file) as picture:
        if picture.mode not in _DEEP | {"1", "L", "P"}:
            raise DataError(file, f"a mask of mode {picture.mode}", "expected grey levels or a palette")
        return np.asarray(picture).astype(np.int64)


def resize_mask(mask: NDArray[np.uint8], image_size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A mask at another size, each pixel from the nearest one."""
    if image_size is None or mask.shape == image_size:
        return mask
    return np.array(Image.fromarray(mask).resize(image_size[::-1], Image.Resampling.NEAREST))


def _to_bytes(file: Path, values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    top = 2**bits - 1
    if values.size and not (values.min() >= 0 and values.max() <= top):
        outside = values.max() if values.max() > top else values.min()
        raise DataError(file, f"its pixels reach {outside}, beyond {bits} bits", "give the right ?bits=")
    scaled: NDArray[np.uint8] = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    return scaled


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            if picture.width * picture.height > _LARGEST_PIXELS:
                raise DataError(file, f"it claims {picture.width}x{picture.height} pixels", "cut it into smaller ones")
            if getattr(picture, "n_frames", 1) > 1:
                raise DataError(file, f"it holds {picture.n_frames} pictures", "expected one: split it")  # type: ignore[attr-defined]
            yield picture
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(file, f"its size is absurd ({error})", "cut it into smaller ones") from error
    except UnidentifiedImageError:
        raise DataError(file, "not a PNG, JPEG or TIFF picture", "convert it, or take it out") from None
    except Exception as error:  # Decoders raise of every kind for damaged files.
        raise DataError(file, f"cannot be decoded ({error})", "fetch it again, or take it out") from error
