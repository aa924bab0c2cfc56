"""Slides through OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide

from medmpi.data import DataError
from medmpi.slide.reader import FILL, BadTile, Pixels, Slide, likely

_BAND = 1 << 18  # pixels that are read at once: what is made of them on the way stays in the caches


class OpenSlideReader(Slide):
    """What OpenSlide knows. After an error its handle is dead, so it is opened again."""

    reader = "openslide"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._slide = self._open()
        self.shapes = tuple((h, w) for w, h in self._slide.level_dimensions)
        self.downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        properties = self._slide.properties
        # OpenSlide shows one level of pyramids whose levels are sub-images, as OME and QuPath write them.
        self.generic = properties.get("openslide.vendor") == "generic-tiff"
        try:
            self.mpp = likely((float(properties["openslide.mpp-y"]), float(properties["openslide.mpp-x"])))
        except (KeyError, ValueError):
            self.mpp = None

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self.path))
        except (openslide.OpenSlideError, OSError) as error:
            raise DataError(self.path, str(error) or "unsupported format", "") from error

    def _read(self, level: int, y: int, x: int, h: int, w: int) -> Pixels:
        step = max(1, _BAND // w)
        if h <= step or not self.downsamples[level].is_integer():  # else it is read between pixels, as one
            return self._read_once(level, y, x, h, w)
        out = np.empty((h, w, 3), np.uint8)
        for top in range(0, h, step):
            out[top : top + step] = self._read_once(level, y + top, x, min(step, h - top), w)
        return out

    def _read_once(self, level: int, y: int, x: int, h: int, w: int) -> Pixels:
        factor = self.downsamples[level]
        origin = round(x * factor), round(y * factor)
        try:
            region = self._slide.read_region(origin, level, (w, h))
        except openslide.OpenSlideError as error:
            self._slide.close()
            self._slide = self._open()
            where = f"level {level}, {h}x{w} at ({y}, {x})"
            raise BadTile(self.path, f"{where}: {error}", "the slide is damaged") from error
        rgba = np.asarray(region)
        pixels = np.array(rgba[..., :3], order="C")
        # OpenSlide's colours are not premultiplied after conversion; where a scanner left holes there is glass.
        holes = rgba[..., 3] == 0
        if holes.any():
            pixels[holes] = FILL
        return pixels

    def close(self) -> None:
        self._slide.close()
