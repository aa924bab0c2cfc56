"""Annotations: polygons (ASAP XML, JSON, GeoJSON) and mask images, as masks at any downsample.

Polygons are in level-0 pixels. Tumour polygons minus exclusions make the truth. Forms of JSON: a GeoJSON
FeatureCollection (QuPath), or ``{"positive": [{"vertices": [[x, y], ...]}, ...], "negative": [...]}`` (NCRF), where
negative ones are exclusions.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medmpi.data import DataError
from medmpi.slide.reader_tiff import TiffReader

_EXCLUDED = ("_2", "exclusion", "exclude", "negative", "normal", "non-tumor", "non-tumour")
_LARGEST_XML = 256 << 20
Polygon = NDArray[np.float64]


class Truth(Protocol):
    """Where tumour is."""

    def mask(
        self, shape: tuple[int, int], downsample: float, origin: tuple[float, float] = (0, 0)
    ) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class Annotation:
    """Polygons (n, 2) of (x, y) in level-0 pixels; ``holes`` are cut out of all ``lesions``."""

    lesions: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()

    def mask(
        self, shape: tuple[int, int], downsample: float, origin: tuple[float, float] = (0, 0)
    ) -> NDArray[np.bool_]:
        """bool (h, w) of the region from ``origin`` (y, x in level-0 pixels): pixels whose centre is in a lesion."""
        picture = Image.new("1", (shape[1], shape[0]))
        draw = ImageDraw.Draw(picture)
        for polygons, value in ((self.lesions, 1), (self.holes, 0)):
            for polygon in polygons:
                # PIL's pixel (i, j) has its centre at whole numbers
                place = (polygon - (origin[1], origin[0])) / downsample - 0.5
                draw.polygon([tuple(p) for p in place.tolist()], fill=value, outline=value)
        return np.asarray(picture)


def read_annotation(path: Path) -> Annotation:
    """Polygons of an .xml, .json or .geojson file; DataError says what is wrong with it."""
    try:
        if path.suffix.lower() == ".xml":
            return _xml(path)
        if path.suffix.lower() in (".json", ".geojson"):
            return _json(path)
    except FileNotFoundError:
        raise DataError(path, "no such file", "expected annotations") from None
    except (ElementTree.ParseError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(path, f"cannot be read: {error!r}", "expected ASAP XML, NCRF JSON or GeoJSON") from error
    raise DataError(path, f"ends with {path.suffix!r}", "expected .xml, .json or .geojson")


def _xml(path: Path) -> Annotation:
    """ASAP: Annotations/Annotation with PartOfGroup and Coordinates/Coordinate (Order, X, Y)."""
    if path.stat().st_size > _LARGEST_XML:
        raise DataError(path, "is larger than 256 MiB", "expected ASAP XML")
    content = path.read_bytes()
    if b"<!ENTITY" in content or b"<!DOCTYPE" in content:  # entities can expand without end
        raise DataError(path, "declares entities", "expected ASAP XML")
    root = ElementTree.fromstring(content)
    found: tuple[list[Polygon], list[Polygon]] = [], []
    for annotation in root.iter("Annotation"):
        places = [
            (float(c.attrib.get("Order", i)), *(float(c.attrib[axis].replace(",", ".")) for axis in ("X", "Y")))
            for i, c in enumerate(annotation.iter("Coordinate"))
        ]  # fmt: skip
        if len(places) < 3:
            continue
        polygon = np.array([(x, y) for _, x, y in sorted(places, key=lambda p: p[0])])
        found[annotation.attrib.get("PartOfGroup", "").lower() in _EXCLUDED].append(polygon)
    return Annotation(tuple(found[0]), tuple(found[1]))


def _json(path: Path) -> Annotation:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and ("positive" in content or "negative" in content):
        lesions, holes = (
            tuple(np.array(entry["vertices"], float).reshape(-1, 2) for entry in content.get(kind, []))
            for kind in ("positive", "negative")
        )
        return Annotation(lesions, holes)
    features = content["features"] if isinstance(content, dict) else content
    found: tuple[list[Polygon], list[Polygon]] = [], []
    for feature in features:
        geometry = feature["geometry"]
        shapes = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}.get(
            geometry["type"], []
        )
        label = str((feature.get("properties") or {}).get("classification", {}).get("name", "")).lower()
        excluded = label in _EXCLUDED
        for rings in shapes:
            outer, *inner = [np.array(ring, float)[:, :2] for ring in rings]
            found[excluded].append(outer)
            if not excluded:
                found[1].extend(inner)
    return Annotation(tuple(found[0]), tuple(found[1]))


def read_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask image as bool of ``shape``: the level of a TIFF that has it, or a larger one by its pixels' centres.

    Values above 0 are tumour.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            levels = list(file.series[0].levels)
            if len(levels) == 1:
                levels = [page.aspage() for page in file.pages]  # type: ignore[misc]
            best = min(
                (p for p in levels if p.shape[0] >= shape[0] * 0.95), key=lambda p: p.shape[0], default=levels[0]
            )
            pixels: NDArray[Any] = best.asarray()
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(path, f"cannot be read: {error}", "expected a mask TIFF") from error
    mask = (pixels if pixels.ndim == 2 else pixels[..., 0]) > 0
    if mask.shape == shape:
        return mask
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(np.int64), m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    )
    return np.asarray(mask[np.ix_(rows, columns)])


class MaskImage:
    """A mask TIFF as large as the slide; values above 0 are tumour. As :class:`Annotation`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with TiffReader(path):
            pass  # what cannot be read is told now

    def mask(
        self, shape: tuple[int, int], downsample: float, origin: tuple[float, float] = (0, 0)
    ) -> NDArray[np.bool_]:
        """bool (h, w) of the region from ``origin`` (y, x in level-0 pixels), by the pixel at each centre."""
        with TiffReader(self._path) as file:
            level = file.level_below(downsample)
            factor = file.downsamples[level]
            rows, columns = (
                np.floor((start + (np.arange(n) + 0.5) * downsample) / factor).astype(np.int64)
                for start, n in zip(origin, shape, strict=True)
            )
            h, w = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            pixels = file.read(level, int(rows[0]), int(columns[0]), h, w, fill=0)
        return np.asarray(pixels[np.ix_(rows - rows[0], columns - columns[0])][..., 0] > 0)


def open_truth(path: Path) -> Truth:
    """Polygons or a mask image by the file's suffix."""
    return MaskImage(path) if path.suffix.lower() in (".tif", ".tiff") else read_annotation(path)


def find_truth(folder: Path, names: Sequence[str], *, but: Path | None = None) -> Path | None:
    """The annotation of a slide: a file of one of its names, by name and never by order. DataError where two fit.

    ``but`` is the slide itself, where it lies in the same folder.
    """
    found = []
    for name in names:
        for suffix in (".xml", ".json", ".geojson", ".tif", ".tiff"):
            for stem in (name, f"{name}_mask", f"{name}_Mask"):
                if (folder / f"{stem}{suffix}").is_file():
                    found.append(folder / f"{stem}{suffix}")
    unique = sorted(path for path in set(found) if but is None or not path.samefile(but))
    if len(unique) > 1:
        raise DataError(folder, f"has {', '.join(p.name for p in unique)} for one slide", "keep one of them")
    return unique[0] if unique else None


def mask_shape(path: Path, downsample: int) -> tuple[int, int]:
    """Height and width of a mask image at 1/``downsample`` of its first level."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            h, w = file.series[0].shape[:2]
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(path, f"cannot be read: {error}", "expected a mask TIFF") from error
    return max(1, -(-h // downsample)), max(1, -(-w // downsample))
