"""Synthetic slides and classifiers whose every weight counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmpi import nn
from medmpi.slide.model import Classifier

tifffile = pytest.importorskip("tifffile", reason="needs the 'slide' extra")
pytest.importorskip("h5py", reason="needs the 'slide' extra")
pytest.importorskip("imagecodecs", reason="needs the 'slide' extra")


def write_slide(
    path: Path,
    pixels: np.ndarray,
    *,
    levels: int = 1,
    tile: int = 128,
    compression: str | None = None,
    subifds: bool = False,
):
    """A tiled pyramid as scanners write it; 0.25 um a pixel."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        image = pixels
        for level in range(levels):
            mpp = 0.25 * 2**level
            file.write(
                image, subifds=levels - 1 if subifds and not level else None, tile=(tile, tile), photometric="rgb",
                compression=compression, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0, metadata=None,
            )  # fmt: skip
            h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            image = image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def tissue_slide(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Glass with tissue at all four edges and one-pixel landmarks everywhere in it."""
    rng = np.random.default_rng(seed)
    h, w = shape
    image = np.full((h, w, 3), 245, np.uint8)
    y, x = np.mgrid[:h, :w]
    near = (y < h // 5) | (y >= h - h // 5) | (x < w // 5) | (x >= w - w // 5)
    image[near] = (190, 90, 160)
    marks = near & (rng.random((h, w)) < 0.01)
    image[marks] = rng.integers(0, 120, (marks.sum(), 3))
    return image


def classifier_of(graph: nn.Graph, window: int, *, scale: float = 1.0, seed: int = 1) -> Classifier:
    """A classifier with random weights; ``scale`` stretches the logits so that windows differ in their scores."""
    nn.Parameters(graph, seed=seed)
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        for name, buffer in node.layer.b.items():
            if name == "running_mean":
                buffer[...] = rng.normal(size=buffer.shape) * 0.1
            elif name == "running_var":
                buffer[...] = rng.uniform(0.5, 2, buffer.shape)
    last = graph.nodes[-1].layer
    last.p["weight"][...] *= scale
    return Classifier(
        graph.fold(), ("normal", "tumour"), (window, window), 3, np.array([0.6, 0.5, 0.55]), np.array([0.2, 0.25, 0.2]),
        "0" * 16,
    )  # fmt: skip
