"""Tumour and normal patches from annotated slides, by S4's rules (S4-05, S4-06).

A place is drawn at random in the slide's tissue (hue, saturation and value); a 256x256 patch there is a tumour patch
when at least half of it is annotated, a normal one when nothing is, and else it is not taken. Training sees a random
224x224 crop of it with noise on hue, saturation and value, from slides whose stains are normalised if asked for. What
is drawn depends on the seed and the slide's content alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.slide.reader import BadTile, Pixels, Slide, open_slide, slide_id
from medmpi.slide.stain import StainFit, apply, fit
from medmpi.slide.tissue import DOWNSAMPLE, find_tissue, thumbnail
from medmpi.slide.truth import Truth

NORMAL, TUMOUR = 0, 1
CLASSES = ("normal", "tumour")
_TRIES = 200  # places looked at for each patch that is wanted
_STAIN_PLACES = 40


@dataclass(frozen=True)
class SampleOptions:
    """``patch`` is looked at, a random ``crop`` of it kept. ``noise`` is added to H (of 180), S and V (of 255): whole
    numbers from 0 to it. ``copies`` crops are made of each patch."""

    tumour: int = 100
    normal: int = 100
    patch: int = 256
    crop: int = 224
    least_tumour: float = 0.5
    noise: int = 20
    copies: int = 1
    stain: str = "none"
    mpp: float | None = None
    level: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.patch or min(self.tumour, self.normal, self.noise) < 0 or self.copies < 1:
            raise ValueError("train-patches: expected 0 < crop <= patch, numbers and noise not below 0, copies above 0")
        if not 0 < self.least_tumour <= 1:
            raise ValueError(f"train-patches: least_tumour is {self.least_tumour}, expected above 0, at most 1")


@dataclass
class Sampled:
    """Crops uint8 (n, crop, crop, 3), their classes, and the level-0 (x, y) of their patches' corners."""

    images: Pixels
    labels: NDArray[np.uint8]
    places: NDArray[np.int64]
    wanted: tuple[int, int]

    def found(self, label: int, copies: int) -> int:
        """Patches (not crops) of a class."""
        return int((self.labels == label).sum()) // copies


def sample_slide(path: Path, annotation: Truth | None, options: SampleOptions) -> Sampled:
    """Patches of one slide; without an annotation it is a normal one. StainError where its stains cannot be fitted."""
    o = options
    rng = np.random.default_rng([o.seed, int(slide_id(path), 16)])
    with open_slide(path) as slide:
        level = o.level if o.level is not None else slide.level_for(o.mpp)
        if not 0 <= level < len(slide.shapes):
            raise DataError(path, f"has no level {level}", f"it has {len(slide.shapes)}")
        picture, _ = thumbnail(slide)
        tissue = np.argwhere(find_tissue(picture, mode="hsv").mask)
        if not len(tissue):
            raise DataError(path, "no tissue was found", "leave it out")
        stain = _stain(slide, level, tissue, rng, o) if o.stain != "none" else None
        factor = slide.downsamples[level]
        counts = {TUMOUR: o.tumour if annotation is not None else 0, NORMAL: o.normal}
        images, labels, places = [], [], []
        for label in (TUMOUR, NORMAL):
            taken = 0
            pool = _inside(tissue, annotation, picture.shape[:2]) if label == TUMOUR and annotation else tissue
            for _ in range(_TRIES * counts[label]):
                if taken == counts[label] or not len(pool):
                    break
                y, x = _place(pool, rng, factor, o.patch)
                share = _share(annotation, y, x, factor, o.patch)
                if not (share >= o.least_tumour if label == TUMOUR else share == 0):
                    continue
                try:
                    patch = slide.read(level, y, x, o.patch, o.patch)
                except BadTile:
                    continue
                patch = apply(stain, patch) if stain is not None else patch
                for _ in range(o.copies):
                    images.append(_crop(patch, rng, o))
                    labels.append(label)
                    places.append((round(x * factor), round(y * factor)))
                taken += 1
    shape = (len(images), o.crop, o.crop, 3)
    return Sampled(
        np.array(images, np.uint8).reshape(shape), np.array(labels, np.uint8),
        np.array(places, np.int64).reshape(-1, 2), (counts[NORMAL], counts[TUMOUR]),
    )  # fmt: skip


def _inside(tissue: NDArray[np.intp], annotation: Truth, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The places near tumour: small lesions would hardly be hit by chance."""
    mask = annotation.mask((shape[0], shape[1]), DOWNSAMPLE)
    near = mask.copy()
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return tissue[near[tissue[:, 0], tissue[:, 1]]]


def _place(pool: NDArray[np.intp], rng: np.random.Generator, factor: float, side: int) -> tuple[int, int]:
    """The upper left corner, in the level's pixels, of a patch around a place in the tissue."""
    row, column = (pool[rng.integers(len(pool))] + rng.random(2)) * DOWNSAMPLE / factor - side / 2
    return int(np.floor(row)), int(np.floor(column))


def _share(annotation: Truth | None, y: int, x: int, factor: float, side: int) -> float:
    if annotation is None:
        return 0.0
    return float(annotation.mask((side, side), factor, (y * factor, x * factor)).mean())


def _stain(slide: Slide, level: int, tissue: NDArray[np.intp], rng: np.random.Generator, o: SampleOptions) -> StainFit:
    found = []
    for _ in range(_STAIN_PLACES):
        y, x = _place(tissue, rng, slide.downsamples[level], 128)
        try:
            found.append(slide.read(level, y, x, 128, 128)[::4, ::4].reshape(-1, 3))
        except BadTile:
            continue
    return fit(o.stain, np.concatenate(found) if found else np.empty((0, 3), np.uint8), str(slide.path))


def _crop(patch: Pixels, rng: np.random.Generator, o: SampleOptions) -> Pixels:
    y, x = rng.integers(0, o.patch - o.crop + 1, 2)
    crop = np.ascontiguousarray(patch[y : y + o.crop, x : x + o.crop])
    if not o.noise:
        return crop
    hsv = K.rgb_to_hsv(crop)
    h, s, v = rng.integers(0, o.noise + 1, 3)
    hsv[..., 0] = (hsv[..., 0] + h / 180) % 1
    hsv[..., 1] = np.minimum(hsv[..., 1] + s / 255, 1)
    hsv[..., 2] = np.minimum(hsv[..., 2] + v / 255, 1)
    return np.rint(K.hsv_to_rgb(hsv) * 255).astype(np.uint8)
