"""Detections and regions for QuPath: GeoJSON in level-0 pixels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medmpi.files import replacing
from medmpi.slide.detections import Detection
from medmpi.slide.heatmap import Heatmap

_COLOUR = [200, 0, 0]


def regions(heat: Heatmap, threshold: float, *, name: str | None = None) -> Iterator[dict[str, Any]]:
    """Annotations: the connected areas where the score passes ``threshold``, outlined between points, with holes."""
    from contourpy import FillType, contour_generator

    scores = np.pad(heat.of(name).astype(np.float64), 1)
    step = heat.meta.step
    outlines = contour_generator(z=scores, fill_type=FillType.OuterOffset).filled(threshold, np.inf)
    label = name or heat.meta.classes[0]
    for points, offsets in zip(*outlines, strict=True):
        place = (np.asarray(points) - 1) * step
        h, w = heat.meta.level0_shape
        place = np.clip(place, 0, (w, h)).round(1)
        rings = [place[a:b].tolist() for a, b in pairwise(offsets)]
        rings = [[*ring, ring[0]] if ring[0] != ring[-1] else ring for ring in rings if len(ring) >= 3]
        if rings:
            yield _feature({"type": "Polygon", "coordinates": rings}, "annotation", label, {"threshold": threshold})


def points(found: Iterable[Detection], label: str) -> Iterator[dict[str, Any]]:
    """Detections as points with their score."""
    for d in found:
        yield _feature({"type": "Point", "coordinates": [d.x, d.y]}, "annotation", label, {"score": round(d.score, 6)})


def _feature(geometry: dict[str, Any], kind: str, label: str, measured: dict[str, float]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "objectType": kind,
            "classification": {"name": label, "color": _COLOUR},
            "measurements": measured,
            "isLocked": False,
        },
    }


def write(path: Path, features: Iterable[dict[str, Any]]) -> int:
    """Streams a FeatureCollection to ``path`` (compressed where it ends with .gz); returns how many there are."""
    count = 0
    with replacing(path) as temporary:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for feature in features:
                file.write((",\n" if count else "\n") + json.dumps(feature))
                count += 1
            file.write("\n]}\n")
    return count
