"""The built-in data set: synthetic lesions on tissue-like texture, generated from a seed, nothing to download.

Tissue is Gaussian noise with the 1/f^3 power spectrum of mammograms (Burgess 1999) and thin fibres. A benign mass is an
ellipse with a sharp margin, a malignant one irregular with spicules (thin rays), both of the same range of contrast and
size, so neither brightness nor place tells them apart. The third kind of lesion is a cluster of microcalcifications.
The arithmetic is numpy's: the same on all ranks of a machine; between machines with other builds of numpy single pixels
may differ by a grey level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .random import Purpose, permutation, philox
from .source import ArraySource, Images, memory_limit

NAMES = ("normal", "benign", "malignant", "calcification")
_CHUNK = 64
Floats = NDArray[np.float32]
Lesions = tuple[Floats, NDArray[np.bool_]]  # Brightness to add and the mask, both (n, h, w).


def generate(
    samples: int, *, classes: int, image_size: tuple[int, int], channels: int, seed: int, stream: int
) -> tuple[Images, NDArray[np.int64], Images]:
    """Images uint8 (n, h, w, channels), labels int64 (n,) in equal shares, lesion masks uint8 (n, h, w).

    A mask holds the lesion's class, 0 outside. With two classes the second is malignant. ``stream`` tells apart the
    splits of one seed. ValueError for sizes that make no sense or need more than half of the machine's memory.
    """
    h, w = image_size
    if min(image_size) < 16:
        raise ValueError(f"phantom: size is {h}x{w}, expected 16 or more (lesions need room)")
    if not 2 <= classes <= len(NAMES) or channels not in (1, 3) or samples < 0:
        raise ValueError(
            f"phantom: {samples} samples, {classes} classes, {channels} channels, "
            f"expected samples >= 0, 2 to {len(NAMES)} classes, 1 or 3 channels"
        )
    if samples * h * w * (channels + 1) > memory_limit():
        raise ValueError(f"phantom: {samples} samples of {h}x{w}x{channels} exceed half of the memory, expected fewer")
    labels = permutation(samples, seed=seed, epoch=stream, purpose=Purpose.PHANTOM) % classes
    images = np.empty((samples, h, w, channels), dtype=np.uint8)
    masks = np.zeros((samples, h, w), dtype=np.uint8)
    for first in range(0, samples, _CHUNK):
        part = slice(first, first + _CHUNK)
        rng = np.random.Generator(philox(seed, stream, Purpose.PHANTOM, 1 + first))
        picture = _tissue(rng, len(labels[part]), image_size)
        for k, kind in enumerate(class_names(classes)):
            at = np.flatnonzero(labels[part] == k)
            if k and len(at):
                lesion, core = _LESIONS[kind](rng, len(at), image_size)
                picture[at] += lesion
                masks[first + at] = core * np.uint8(k)
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(0.025)
        images[part] = _to_bytes(picture, channels)
    return images, labels, masks


def class_names(classes: int) -> tuple[str, ...]:
    """Names of the classes, in order."""
    return ("normal", "malignant") if classes == 2 else NAMES[:classes]


def source(images: Images, labels: NDArray[np.int64], masks: Images, *, segmentation: bool) -> ArraySource:
    """The generated samples with the targets of the task."""
    return ArraySource(images, masks if segmentation else labels)


def _tissue(rng: np.random.Generator, count: int, size: tuple[int, int]) -> Floats:
    h, w = size
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    frequency[0, 0] = 1.0
    fields = []
    # Amplitude f^-1.5 is the power spectrum f^-3; the fibres come from the zero crossings of a finer field.
    for exponent, shortest in ((-1.5, 0.0), (-0.8, 2.5 / min(size))):
        spectrum = frequency**exponent
        spectrum[frequency <= shortest] = 0
        spectrum[0, 0] = 0
        noise = rng.standard_normal((count, h, w), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(noise) * spectrum, s=size).astype(np.float32)
        fields.append(field / field.std(axis=(1, 2), keepdims=True))
    fibres = np.maximum(0, np.float32(0.35) - np.abs(fields[1])) / np.float32(0.35)
    level = rng.uniform(0.30, 0.45, (count, 1, 1)).astype(np.float32)
    picture: Floats = level + np.float32(0.07) * fields[0] + np.float32(0.05) * fibres
    return picture


@dataclass(frozen=True)
class _Place:
    """Where lesions lie: radius (n, 1, 1) and distances of all pixels from the centres, (n, h, 1) and (n, 1, w)."""

    radius: Floats
    dy: Floats
    dx: Floats

    @property
    def edge(self) -> Floats:
        """How many pixels a margin takes to fade."""
        return np.float32(0.5) + np.float32(0.04) * self.radius


def _draw(rng: np.random.Generator, low: float, high: float, n: int) -> Floats:
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _places(rng: np.random.Generator, n: int, size: tuple[int, int]) -> _Place:
    h, w = size
    radius = _draw(rng, 0.13, 0.20, n) * np.float32(min(size))
    margin = np.float32(1.3) * radius
    cy, cx = (margin + _draw(rng, 0, 1, n) * (side - 2 * margin) for side in size)
    rows, columns = np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32)
    return _Place(radius, rows[None, :, None] - cy, columns[None, None, :] - cx)


def _benign(rng: np.random.Generator, n: int, size: tuple[int, int]) -> Lesions:
    """Ellipses with a sharp margin."""
    place = _places(rng, n, size)
    aspect, turn = _draw(rng, 0.72, 1.0, n), _draw(rng, 0, np.pi, n)
    along = place.dx * np.cos(turn) + place.dy * np.sin(turn)
    across = place.dy * np.cos(turn) - place.dx * np.sin(turn)
    body = _fade((place.radius - np.hypot(along, across / aspect)) / place.edge)
    return _contrast(rng, n) * body, body > 0.5


def _malignant(rng: np.random.Generator, n: int, size: tuple[int, int]) -> Lesions:
    """Irregular cores of about the same area, with 6 to 10 spicules that fade outwards."""
    place = _places(rng, n, size)
    core_radius = np.float32(0.62) * place.radius
    distance, angle = np.hypot(place.dy, place.dx), np.arctan2(place.dy, place.dx)
    limit = np.broadcast_to(core_radius, distance.shape).copy()
    for k in range(2, 7):
        limit += core_radius * _draw(rng, 0, 0.28 / np.sqrt(k - 1), n) * np.cos(k * angle + _draw(rng, 0, 2 * np.pi, n))
    body = _fade((limit - distance) / (1.5 * place.edge))
    count = rng.integers(6, 11, (n, 1, 1))
    width = np.float32(0.65) + np.float32(0.035) * place.radius
    rays = np.zeros_like(distance)
    for j in range(10):
        direction = np.float32(2 * np.pi * j) / count.astype(np.float32) + _draw(rng, -0.3, 0.3, n)
        length = place.radius * _draw(rng, 1.5, 2.1, n)
        across = place.dy * np.cos(direction) - place.dx * np.sin(direction)
        along = place.dx * np.cos(direction) + place.dy * np.sin(direction)
        ray = np.exp(-np.square(across / width)) * _fade((length - along) / place.edge)
        np.maximum(rays, ray * ((along > 0) & (j < count)), out=rays)
    return _contrast(rng, n) * np.maximum(body, rays), body > 0.5


def _calcification(rng: np.random.Generator, n: int, size: tuple[int, int]) -> Lesions:
    """Clusters of 7 to 13 bright spots; the mask is the disc that holds them."""
    place = _places(rng, n, size)
    width = np.float32(0.6) + np.float32(0.03) * place.radius
    count = rng.integers(7, 14, (n, 1, 1))
    spots = np.zeros(np.broadcast_shapes(place.dy.shape, place.dx.shape), dtype=np.float32)
    for j in range(13):
        y, x = (_draw(rng, -0.9, 0.9, n) * place.radius for _ in range(2))
        spot = np.exp(-(np.square((place.dy - y) / width) + np.square((place.dx - x) / width)))
        np.maximum(spots, spot * (j < count), out=spots)
    return _draw(rng, 0.35, 0.5, n) * spots, np.hypot(place.dy, place.dx) <= place.radius


_LESIONS = {"benign": _benign, "malignant": _malignant, "calcification": _calcification}


def _contrast(rng: np.random.Generator, n: int) -> Floats:
    return _draw(rng, 0.30, 0.40, n)


def _fade(x: Floats) -> Floats:
    """A logistic step."""
    faded: Floats = np.reciprocal(1 + np.exp(-np.clip(x, -30, 30)))
    return faded


def _to_bytes(picture: Floats, channels: int) -> Images:
    """Grey levels, or for three channels the shades of a haematoxylin-eosin stain (dark purple on pink)."""
    grey = np.clip(picture, 0, 1)[..., None]
    if channels == 3:
        light, dark = np.array([0.93, 0.80, 0.90], np.float32), np.array([0.30, 0.12, 0.45], np.float32)
        grey = light + grey * (dark - light)
    return (grey * np.float32(255) + np.float32(0.5)).astype(np.uint8)
