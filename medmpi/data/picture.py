"""PNG, JPEG, TIFF, BMP and PGM files through Pillow and tifffile. What is wrong with a file is a DataError naming it.

A header is checked before any pixel is decoded: a file of a few bytes may claim gigapixels. Checksums and end markers
that the decoders pass over are looked at here.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import DataError, MissingPackage, guarded
from .medical import LARGEST_PIXELS, Header, MedicalImage
from .source import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
_GREY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"})
_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L"})


def read_picture_header(file: Path) -> Header:
    """Size (h, w) and kind of a picture, without decoding it."""
    if (page := _unusual_tiff(file)) is not None:
        return Header(page.shape, True)
    with _opened(file) as picture:
        return Header(picture.size[::-1], picture.mode in _GREY)


def read_picture(file: Path) -> MedicalImage:
    """The picture as uint8 or uint16 (1, h, w, 1 or 3), or as float32 (TIFF); an alpha channel is dropped."""
    if (page := _unusual_tiff(file)) is not None:
        return MedicalImage(str(file), _read_page(file, page)[None, ..., None], "picture", 16)
    with _opened(file) as picture:
        _check_whole(file, picture.format or "")
        if picture.mode in ("RGB", "RGBA") and picture.format == "TIFF" and _tiff_bits(picture) == 16:
            pixels = _by_tifffile(file, picture.size[::-1])
        elif picture.mode in _DEEP or picture.mode == "F":
            pixels = np.asarray(picture)
            if picture.mode == "I":  # 16 bits in 32, but for a TIFF of 32
                pixels = (
                    pixels.astype(np.uint16) if pixels.size and 0 <= pixels.min() <= pixels.max() < 65536 else pixels
                )
        else:
            pixels = np.array(picture.convert("L" if picture.mode in _GREY else "RGB"))
        spacing = _spacing(picture)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    bits = {1: 8, 2: 16}.get(pixels.dtype.itemsize, 0)
    stacked = pixels.reshape(1, pixels.shape[0], pixels.shape[1], -1)
    return MedicalImage(str(file), stacked, "picture", bits if pixels.dtype.kind == "u" else 16, spacing)


def read_picture_mask(file: Path) -> NDArray[np.int64]:
    """The numbers of a mask (h, w): grey levels of 1 to 32 bits, or a palette's indices."""
    if (page := _unusual_tiff(file)) is not None and page.dtype.kind == "u":
        return _read_page(file, page).astype(np.int64)
    with _opened(file) as picture:
        _check_whole(file, picture.format or "")
        if picture.mode not in _DEEP | {"1", "L", "P"}:
            raise DataError(file, f"a mask of mode {picture.mode}", "expected grey levels or a palette")
        return np.asarray(picture).astype(np.int64)


def resize_mask(mask: NDArray[np.uint8], image_size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A mask at another size, each pixel from the nearest one."""
    if image_size is None or mask.shape == image_size:
        return mask
    return np.array(Image.fromarray(mask).resize(image_size[::-1], Image.Resampling.NEAREST))


def resize_image(image: Images, image_size: tuple[int, int] | None) -> Images:
    """uint8 (h, w, c), stretched: bilinear, averaging where it shrinks."""
    if image_size is None or image.shape[:2] == image_size:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    small = np.asarray(picture.resize(image_size[::-1], Image.Resampling.BILINEAR))
    return small.reshape(*image_size, image.shape[2])


def to_channels(image: Images, channels: int) -> Images:
    """uint8 (h, w, 1 or 3) with 1 or 3 channels: grey is repeated, colour becomes its luma (ITU-R 601)."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.array(Image.fromarray(image).convert("L"))[..., None]


def _tiff_bits(picture: Image.Image) -> int:
    bits = picture.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _by_tifffile(file: Path, size: tuple[int, int]) -> NDArray[Any]:
    """Colours of 16 bits, which Pillow cuts to 8."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackage(file, "16-bit colours in TIFF need tifffile", "pip install 'medmpi[io]'") from None
    pixels = np.asarray(tifffile.imread(file))
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[1:] == size:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != size or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise DataError(file, f"its pixels are {pixels.shape}", "expected one grey or RGB picture")
    return np.ascontiguousarray(pixels[..., :3])


def _unusual_tiff(file: Path) -> Any:
    """tifffile's page where a TIFF holds grey fractions of 16 or 64 bits or numbers of 32 without a sign.

    Pillow knows none of the first and takes the last for signed ones. None for any other file.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return None
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0]
            odd = page.dtype in (np.float16, np.float64, np.uint32) and len(tiff.pages) == 1
            return page if odd and len(page.shape) == 2 else None
    except Exception:  # whatever it is, the usual reader says what is wrong with it
        return None


def _read_page(file: Path, page: Any) -> NDArray[Any]:
    """The pixels of tifffile's page, float32 for fractions."""
    h, w = page.shape
    if h * w > LARGEST_PIXELS:
        raise DataError(file, f"it claims {w}x{h} pixels", "cut it into smaller ones")
    there = file.stat().st_size
    if any(n <= 0 or at + n > there for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise DataError(file, "parts of its pixels are missing: truncated", "fetch it again, or take it out")
    if page.compression == 1 and sum(page.databytecounts) < h * w * page.dtype.itemsize:
        raise DataError(file, "its pixels are fewer than it claims: truncated", "fetch it again, or take it out")
    import tifffile

    with np.errstate(over="ignore"):
        pixels = guarded(file, "TIFF", "fetch it again, or take it out", lambda: tifffile.imread(file))
        return np.asarray(pixels).astype(np.float32 if page.dtype.kind == "f" else np.uint32)


def _spacing(picture: Image.Image) -> tuple[float, float] | None:
    """Millimetres from a PNG's or TIFF's resolution, unless it is that of a screen or printer."""
    dpi = picture.info.get("dpi")
    if picture.format not in ("PNG", "TIFF") or not dpi or min(dpi) <= 0 or round(float(dpi[0])) in (72, 96, 300, 1):
        return None
    return 25.4 / float(dpi[1]), 25.4 / float(dpi[0])


def _check_whole(file: Path, format: str) -> None:
    """PNG: the checksum of every chunk up to the last. JPEG: the end marker."""
    if format not in ("PNG", "JPEG"):
        return
    data = file.read_bytes()
    if format == "JPEG":
        if b"\xff\xd9" not in data[-(1 << 16) :]:
            raise DataError(file, "its end marker is missing: truncated", "fetch it again, or take it out")
        return
    at = 8
    while at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        stop = at + 12 + length
        if stop > len(data):
            break
        if zlib.crc32(data[at + 4 : stop - 4]) != struct.unpack(">I", data[stop - 4 : stop])[0]:
            raise DataError(file, f"the checksum of its part {kind!r} is wrong: damaged", "fetch it again")
        if kind == b"IEND":
            return
        at = stop
    raise DataError(file, "it is truncated: its end is missing", "fetch it again, or take it out")


@cache
def _quiet() -> None:
    """What Pillow warns of (damaged metadata) does not touch the pixels; sizes are checked here."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\b")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    _quiet()
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                raise DataError(file, f"it claims {picture.width}x{picture.height} pixels", "cut it into smaller ones")
            if getattr(picture, "n_frames", 1) > 1:
                raise DataError(file, f"it holds {picture.n_frames} pictures", "expected one: split it")  # type: ignore[attr-defined]
            yield picture
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(file, f"its size is absurd ({error})", "cut it into smaller ones") from error
    except UnidentifiedImageError:
        raise DataError(file, "not a PNG, JPEG, TIFF, BMP or PGM picture", "convert it, or take it out") from None
    except Exception as error:  # Decoders raise of every kind for damaged files.
        raise DataError(file, f"cannot be decoded ({error})", "fetch it again, or take it out") from error
