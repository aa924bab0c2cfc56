"""Stain normalisation: Reinhard 2001, Macenko 2009 and Vahadane 2016, fitted once a slide.

S4 fits Vahadane's factors tile by tile (+21.9 % of all its core-hours) and falls back to raw pixels where that fails. A
slide was stained once: here the fit uses pixels from all over its tissue, is kept with the job, and a fit that fails is
an error of that slide. Applied to pixels it is a table look-up, 3x3 products and an exponential. As it is the same for
every window, shared convolution stays exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.slide.reader import BadTile, Pixels, Slide
from medmpi.slide.store import GroupPixels, Store

METHODS = ("none", "reinhard", "macenko", "vahadane")
Reals = NDArray[np.float64]
_LEAST_PIXELS = 500
_LEAST_OD = 0.15  # optical density below which a pixel is glass (Macenko's beta)
_SPARSE = 0.1  # Vahadane's lambda
# The reference of Macenko's published code: stain vectors (RGB, stain) and the 99th percentiles of concentration.
_REFERENCE = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
_REFERENCE_MAX = np.array([1.9705, 1.0308])
# HistomicsTK's reference for Reinhard: mean and deviation in Ruderman's l, alpha, beta (natural logarithms).
_REINHARD_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
_REINHARD_STD = np.array([0.6135447, 0.10989545, 0.0286032])
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.diag(1 / np.sqrt([3.0, 6.0, 2.0])) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])


class StainError(DataError):
    """A slide's stains cannot be fitted."""


@dataclass(frozen=True)
class StainFit:
    """What was measured on a slide: ``first`` and ``second`` are means and deviations of l, alpha, beta (Reinhard), or
    the stain matrix (RGB x stain, flat) and the stains' 99th percentiles."""

    method: str
    first: tuple[float, ...]
    second: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StainFit:
        """The inverse; StainError where a failure was noted instead."""
        if "error" in content:
            raise StainError(content.get("slide", "slide"), content["error"], "leave the slide out, or --stain none")
        return cls(content["method"], tuple(content["first"]), tuple(content["second"]))


def density(pixels: NDArray[np.uint8]) -> Reals:
    """Optical density -ln((I + 1) / 256) of RGB pixels (..., 3): 0 for white."""
    table = -np.log((np.arange(256) + 1.0) / 256)
    return np.asarray(table[pixels])


def fit(method: str, pixels: NDArray[np.uint8], name: str = "slide") -> StainFit:
    """Fits the stains of RGB pixels (n, 3). StainError where there is too little tissue or one stain only."""
    if method not in METHODS[1:]:
        raise ValueError(f"stain: method is {method!r}, expected one of {', '.join(METHODS[1:])}")
    od = density(pixels)
    dark = (od > _LEAST_OD).all(axis=1)
    if dark.sum() < _LEAST_PIXELS:
        raise StainError(name, f"has {int(dark.sum())} stained pixels in the sample, {_LEAST_PIXELS} are needed", "")
    if method == "reinhard":
        lab = _to_lab(pixels[dark])
        spread = lab.std(0)
        if (spread < 1e-6).any():
            raise StainError(name, "has a single colour", "")
        return StainFit(method, tuple(lab.mean(0).tolist()), tuple(spread.tolist()))
    stains = _macenko(od[dark], name) if method == "macenko" else _vahadane(od[dark], name)
    top = np.percentile(_concentrations(stains, od[dark], method), 99, axis=0)
    if not np.isfinite(stains).all() or (top < 1e-3).any():
        raise StainError(name, "shows one stain only", "")
    return StainFit(method, tuple(stains.ravel().tolist()), tuple(top.tolist()))


def _ordered(stains: Reals) -> Reals:
    """Unit columns, haematoxylin (the one with more red absorbed) first."""
    stains = stains / np.linalg.norm(stains, axis=0)
    return stains[:, ::-1] if stains[0, 0] < stains[0, 1] else stains


def _macenko(od: Reals, name: str) -> Reals:
    """The extreme directions of the plane of the two largest variances (Macenko et al., ISBI 2009)."""
    values, vectors = np.linalg.eigh(np.cov(od.T))
    if values[1] <= 1e-9 * values[2]:
        raise StainError(name, "shows one stain only", "")
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)
    along = od @ plane
    angle = np.arctan2(along[:, 1], along[:, 0])
    low, high = np.percentile(angle, [1, 99])
    ends = np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])
    return _ordered(np.abs(plane @ ends))


def _vahadane(od: Reals, name: str) -> Reals:
    """Sparse non-negative factors of the optical densities (Vahadane et al., TMI 2016), from Macenko's stains."""
    stains = _macenko(od, name)
    for _ in range(50):
        codes = _sparse_codes(stains, od)
        gram, cross = codes.T @ codes, od.T @ codes
        updated = stains.copy()
        for j in range(2):
            if gram[j, j] > 1e-12:
                updated[:, j] = np.maximum(updated[:, j] + (cross[:, j] - updated @ gram[:, j]) / gram[j, j], 1e-9)
        updated /= np.linalg.norm(updated, axis=0)
        if np.abs(updated - stains).max() < 1e-5:
            stains = updated
            break
        stains = updated
    return _ordered(stains)


def _sparse_codes(stains: Reals, od: Reals) -> Reals:
    """argmin |od - stains c|^2 / 2 + lambda |c|_1 with c >= 0, exactly: two atoms have four cases."""
    pull = od @ stains - _SPARSE
    overlap = float(stains[:, 0] @ stains[:, 1])
    scale = 1 - overlap**2
    both = np.stack([pull[:, 0] - overlap * pull[:, 1], pull[:, 1] - overlap * pull[:, 0]], axis=1) / max(scale, 1e-9)
    alone = np.maximum(pull, 0)
    first = pull[:, 0] >= pull[:, 1]
    single = np.where(np.stack([first, ~first], axis=1), alone, 0)
    return np.asarray(np.where((both > 0).all(axis=1, keepdims=True), both, single))


def _concentrations(stains: Reals, od: Reals, method: str) -> Reals:
    if method == "vahadane":
        return _sparse_codes(stains, od)
    return np.maximum(od @ np.linalg.pinv(stains).T, 0)


def _to_lab(pixels: NDArray[np.uint8]) -> Reals:
    return np.asarray(np.log((pixels.astype(np.float64) + 1) @ _LMS.T) @ _LAB.T)


def apply(found: StainFit, pixels: Pixels) -> Pixels:
    """The pixels (h, w, 3) as if the slide had the reference's stains."""
    flat = np.ascontiguousarray(pixels.reshape(-1, 3))
    if found.method == "reinhard":
        logs = np.log(_product(flat.astype(np.float32) + 1, _LMS.T))
        gain = _REINHARD_STD / np.array(found.second)
        # In l, alpha, beta the change is one line a channel, so there and back is one product.
        back = np.linalg.inv(_LAB)
        logs = _product(logs, (back @ np.diag(gain) @ _LAB).T)
        logs += (back @ (_REINHARD_MEAN - gain * np.array(found.first))).astype(np.float32)
        out = _product(np.exp(logs), np.linalg.inv(_LMS).T) - 1
    else:
        stains, top = np.array(found.first).reshape(3, 2), np.array(found.second)
        table = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
        od: NDArray[Any] = table[flat]
        if found.method == "vahadane":
            codes = _sparse_codes(stains, od.astype(np.float64)).astype(np.float32)
        else:
            codes = np.maximum(_product(od, np.linalg.pinv(stains).T), 0)
        out = 256 * np.exp(-_product(codes, (_REFERENCE * (_REFERENCE_MAX / top)).T)) - 1
    return np.clip(np.rint(out), 0, 255).astype(np.uint8).reshape(pixels.shape)


def _product(rows: NDArray[Any], matrix: Reals) -> NDArray[np.float32]:
    """rows @ matrix on the kernels."""
    return K.linear(np.ascontiguousarray(rows, np.float32), np.ascontiguousarray(matrix, np.float32), None)


def sample(store: Store, slide: Slide | None = None, *, patches: int = 48, pixels: int = 800) -> NDArray[np.uint8]:
    """RGB pixels (n, 3) from patches spread over a slide's tissue, the same ones every time."""
    step = max(1, store.meta.patches // patches)
    chosen = np.arange(0, store.meta.patches, step)[:patches]
    found = []
    size, group, source = store.meta.patch, -1, None
    every = max(1, int((size * size / pixels) ** 0.5))
    for number in chosen.tolist():
        if number // store.meta.group_size != group or source is None:
            group = number // store.meta.group_size
            source = GroupPixels(store, group, slide)
        r, c = store.patches[number].tolist()
        try:
            found.append(source.region(r * size, c * size, size, size)[::every, ::every].reshape(-1, 3))
        except BadTile:
            continue
    return np.concatenate(found) if found else np.empty((0, 3), np.uint8)


def transform_for(content: dict[str, Any] | None) -> Callable[[Pixels], Pixels] | None:
    """The transform that a job's manifest asks for; StainError where the fit had failed."""
    if content is None:
        return None
    found = StainFit.from_json(content)
    return lambda pixels: apply(found, pixels)
