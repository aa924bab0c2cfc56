"""Whole slides behind one interface: levels, microns per pixel and regions, whatever the format.

OpenSlide reads what scanners write (SVS, NDPI, MRXS, DICOM, Philips, generic tiled TIFF); tifffile reads the TIFFs that
OpenSlide does not know. Regions may reach beyond the slide: what is outside is filled, never shifted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from medmpi.data import DataError

Pixels = NDArray[np.uint8]
FILL = 255  # glass
_LIKELY = (0.02, 20.0)  # um a pixel
_BLOCKS, _BLOCK = 64, 1 << 16  # of a file that identify it


class BadTile(DataError):
    """A region cannot be decoded. The slide has been reopened: other regions can be read."""


class Slide:
    """An open slide. ``shapes`` are (h, w) of the levels, ``downsamples`` their real factors, largest level first.

    ``mpp`` are the microns per level-0 pixel (vertical, horizontal), None where the file does not tell.
    """

    reader = "none"
    shapes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    mpp: tuple[float, float] | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self, level: int, y: int, x: int, h: int, w: int, *, fill: int = FILL) -> Pixels:
        """uint8 (h, w, 3) RGB from (y, x) in pixels of ``level``; ``fill`` where the slide does not reach.

        BadTile where the file's data cannot be decoded.
        """
        rows, columns = self.shapes[level]
        y0, y1, x0, x1 = max(y, 0), min(y + h, rows), max(x, 0), min(x + w, columns)
        if (y0, y1, x0, x1) == (y, y + h, x, x + w):
            return self._read(level, y, x, h, w)
        out = np.full((h, w, 3), fill, np.uint8)
        if y0 < y1 and x0 < x1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read(level, y0, x0, y1 - y0, x1 - x0)
        return out

    def _read(self, level: int, y: int, x: int, h: int, w: int) -> Pixels:
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file; reading is an error from then on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def level_for(self, mpp: float | None, *, tolerance: float = 0.1) -> int:
        """The level of ``mpp`` microns a pixel (0 where None), within ``tolerance``; DataError if there is none."""
        if mpp is None:
            return 0
        if self.mpp is None:
            raise DataError(self.path, "does not tell its microns per pixel", "name the level instead (--level)")
        base = (self.mpp[0] + self.mpp[1]) / 2
        found = [base * factor for factor in self.downsamples]
        best = min(range(len(found)), key=lambda i: abs(np.log(found[i] / mpp)))
        if abs(found[best] / mpp - 1) > tolerance:
            text = ", ".join(f"{value:.3f}" for value in found)
            raise DataError(self.path, f"has levels of {text} um a pixel, {mpp} was asked for", "choose one (--level)")
        return best

    def level_below(self, downsample: float) -> int:
        """The coarsest level that is not coarser than ``downsample``."""
        return max((i for i, d in enumerate(self.downsamples) if d <= downsample * 1.001), default=0)


def open_slide(path: str | os.PathLike[str]) -> Slide:
    """Opens a slide with the reader that knows its format. DataError where none does, saying what each said."""
    path = Path(path)
    if path.is_dir():
        path = _first_dicom(path)
    if not path.exists():
        raise DataError(path, "no such file", "check the path of the slide")
    from medmpi.slide.reader_openslide import OpenSlideReader
    from medmpi.slide.reader_tiff import TiffReader

    said = []
    for reader in (OpenSlideReader, TiffReader):
        try:
            slide = reader(path)
            if isinstance(slide, OpenSlideReader) and slide.generic and len(slide.shapes) == 1:
                return _one_level(slide, TiffReader)
            return slide
        except DataError as error:
            said.append(f"{reader.reader}: {error.cause}")
        except ImportError as error:
            said.append(f"{reader.reader}: {error}; pip install 'medmpi[slide]'")
    raise DataError(path, "; ".join(said), "expected SVS, NDPI, MRXS, DICOM, TIFF or another format of OpenSlide")


def _one_level(slide: Slide, other: Callable[[Path], Slide]) -> Slide:
    """A TIFF of one level to OpenSlide: ``other`` may find more. What that one does not take OpenSlide turns to RGB
    (16 bits, palettes, CMYK); not floating point, as the first pixel shows."""
    try:
        found = other(slide.path)
    except DataError:
        try:
            slide.read(0, 0, 0, 1, 1)
        except BadTile:
            slide.close()
            raise DataError(slide.path, "cannot turn its pixels to RGB", "") from None
        return slide
    slide.close()
    return found


def likely(mpp: tuple[float, float]) -> tuple[float, float] | None:
    """None for microns per pixel that no microscope has: 72 dots per inch and other units are no measurement."""
    return mpp if all(_LIKELY[0] < value < _LIKELY[1] for value in mpp) else None


def _first_dicom(folder: Path) -> Path:
    """The largest DICOM file of a folder: OpenSlide finds the other levels of its series beside it."""
    files = sorted(folder.glob("*.dcm"), key=lambda f: (-f.stat().st_size, f.name))
    if not files:
        raise DataError(folder, "is a folder without .dcm files", "name the slide's file")
    return files[0]


def slide_id(path: str | os.PathLike[str]) -> str:
    """16 hexadecimal digits of the file's content: its length and 64 blocks spread over it; not of its name.

    Files up to 4 MiB are read whole. A folder is the set of its DICOM files.
    """
    path = Path(path)
    try:
        if path.is_dir():
            parts = sorted(slide_id(file) for file in path.glob("*.dcm"))
            return hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()
        digest = hashlib.blake2b(digest_size=8)
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            last = max(size - _BLOCK, 0)
            for start in sorted({last * i // (_BLOCKS - 1) for i in range(_BLOCKS)}):
                file.seek(start)
                digest.update(file.read(_BLOCK))
            return digest.hexdigest()
    except OSError as error:
        raise DataError(path, error.strerror or error, "check the path of the slide") from error
