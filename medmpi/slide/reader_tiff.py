"""Slides through tifffile: tiled or striped, BigTIFF, any compression that imagecodecs has."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from medmpi.data import DataError
from medmpi.slide.reader import FILL, BadTile, Pixels, Slide, likely

_MICRONS = {2: 25400.0, 3: 10000.0}  # of TIFF's resolution units
_COLOURS = ("MINISBLACK", "RGB", "YCBCR")


class TiffReader(Slide):
    """The first series' levels; only the segments that a region touches are decoded."""

    reader = "tifffile"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._file = tifffile.TiffFile(path)
            self._pages = self._levels()
            for page in self._pages:
                samples = page.samplesperpixel
                if page.dtype != np.uint8 or samples not in (1, 3, 4) or len(page.shape) not in (2, 3):
                    raise ValueError(f"pixels are {page.dtype} {page.shape}, expected 8-bit RGB or grey")
                if page.photometric.name not in _COLOURS:
                    raise ValueError(f"colours are stored as {page.photometric.name}, expected RGB or grey")
                if page.planarconfig == 2 and samples > 1:
                    raise ValueError("colours are stored in planes, expected pixel by pixel")
        except Exception as error:  # tifffile raises many kinds for damaged files
            with contextlib.suppress(AttributeError):
                self._file.close()
            why = "it holds no whole image" if isinstance(error, IndexError) else str(error)
            raise DataError(path, why) from error
        self.shapes = tuple((int(p.imagelength), int(p.imagewidth)) for p in self._pages)
        self.downsamples = tuple(((self.shapes[0][0] / h) * (self.shapes[0][1] / w)) ** 0.5 for h, w in self.shapes)
        self.mpp = self._microns()

    def _levels(self) -> list[Any]:
        """The pages of the pyramid: sub-images of the first, or pages that are marked as its reductions."""
        levels = [level.keyframe for level in self._file.series[0].levels]
        if len(levels) == 1:
            for page in self._file.pages[1:]:
                last, page = levels[-1], page.aspage()
                factors = last.imagelength / page.imagelength, last.imagewidth / page.imagewidth
                if page.is_reduced and page.is_tiled and min(factors) > 1.2 and abs(factors[0] / factors[1] - 1) < 0.05:
                    levels.append(page)
        return levels

    def _microns(self) -> tuple[float, float] | None:
        tags = self._pages[0].tags
        unit = _MICRONS.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        found = []
        for name in ("YResolution", "XResolution"):
            above, below = tags[name].value
            if not above or not below:
                return None
            found.append(unit * below / above)
        return likely((found[0], found[1]))

    def _read(self, level: int, y: int, x: int, h: int, w: int) -> Pixels:
        page = self._pages[level]
        out = np.full((h, w, 3), FILL, np.uint8)
        th, tw = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        th = min(th, page.imagelength)
        across = -(-page.imagewidth // tw)
        wanted = [r * across + c for r in range(y // th, -(-(y + h) // th)) for c in range(x // tw, -(-(x + w) // tw))]
        try:
            for index in wanted:
                tile = self._segment(page, index)
                if tile is None:  # a sparse file: nothing was scanned there
                    continue
                ty, tx = index // across * th, index % across * tw
                y0, y1 = max(y, ty), min(y + h, ty + tile.shape[0])
                x0, x1 = max(x, tx), min(x + w, tx + tile.shape[1])
                if y0 < y1 and x0 < x1:
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - ty : y1 - ty, x0 - tx : x1 - tx]
        except Exception as error:  # every codec has errors of its own
            self._reopen()
            where = f"level {level}, {h}x{w} at ({y}, {x})"
            raise BadTile(self.path, f"{where}: {error}", "the slide is damaged") from error
        return out

    def _segment(self, page: Any, index: int) -> Pixels | None:
        """A tile or strip as (h, w, 3)."""
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if size == 0:
            return None
        handle = self._file.filehandle
        handle.seek(offset)
        data = handle.read(size)
        if len(data) != size:
            raise ValueError(f"segment {index} has {len(data)} of {size} bytes")
        tables = page.jpegtables
        decoded = page.decode(data, index, jpegtables=tables)[0] if tables is not None else page.decode(data, index)[0]
        if decoded is None:
            return None
        tile = decoded[0]
        return tile[..., :3] if tile.shape[-1] >= 3 else np.repeat(tile[..., :1], 3, axis=-1)

    def _reopen(self) -> None:
        self._file.close()
        self._file = tifffile.TiffFile(self.path)
        self._pages = self._levels()

    def close(self) -> None:
        self._file.close()
