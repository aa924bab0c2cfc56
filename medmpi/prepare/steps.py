"""What is done to the pixels of one image: levels, noise, crop, contrast, size, normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels
from medmpi.data.mammogram import breast_box
from medmpi.data.medical import Levels, MedicalImage, parse_window, to_levels
from medmpi.prepare.options import Options, crop_size

Pixels = NDArray[Any]
Moments = tuple[int, float, float]
"""Count, sum and sum of squares of pixels as shares of the range."""
_SIGMAS = 3.0  # of a normalised image that the levels show


@dataclass
class Prepared:
    """One frame after all steps, uint8 or uint16 (h, w, c), the box that was cut, and moments if it is normalised."""

    pixels: Pixels
    box: tuple[int, int, int, int]
    moments: Moments | None
    steps: list[str] = field(default_factory=list)


def prepare_frame(
    image: MedicalImage, frame: int, options: Options, statistics: tuple[float, float] | None
) -> Prepared:
    """All steps on one frame. ``statistics`` are mean and std of the data set where it is normalised by them.

    Grey images have the bits asked for, colours 8. DataError for pixels that have no levels.
    """
    depth = options.bits if image.grey else 8
    window = parse_window(options.window)
    levels = Levels(window, image.bits or 16, "fill" if options.nan == "fill" else "error")
    pixels = to_levels(image, levels, depth=depth, frame=frame)[0]
    done = [f"window {options.window} to {depth} bits"]
    for name, value in options.denoise:
        pixels = _gaussian(pixels, value) if name == "gaussian" else _median(pixels, int(value))
        done.append(f"{name} {value:g}")
    box = _box(pixels, options.crop)
    top, left, bottom, right = box
    if box != (0, 0, *pixels.shape[:2]):
        pixels = pixels[top:bottom, left:right]
        done.append(f"crop rows {top}:{bottom} columns {left}:{right}")
    for name, value in options.contrast:
        pixels = _clahe(pixels, value) if name == "clahe" else _gamma(pixels, value)
        done.append(f"{name} {value:g}")
    if options.image_size is not None:
        pixels = fitted(pixels, options.image_size, options.fit)
        done.append(f"{options.fit} to {options.image_size[0]}x{options.image_size[1]}")
    moments = None
    if options.normalise != "none":
        moments = _moments(pixels)
        mean, std = statistics if statistics is not None else mean_and_std([moments])
        pixels = _normalised(pixels, mean, std)
        done.append(f"normalise by mean {mean:.6g} std {std:.6g}, -3..3 to the levels")
    return Prepared(np.ascontiguousarray(pixels), box, moments, done)


def mean_and_std(moments: list[Moments]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels together; std 0 where all are equal."""
    count = sum(m[0] for m in moments)
    if not count:
        return 0.0, 0.0
    mean = sum(m[1] for m in moments) / count
    variance = sum(m[2] for m in moments) / count - mean * mean
    return mean, float(np.sqrt(variance)) if variance > 1e-12 else 0.0


def fitted(pixels: Pixels, size: tuple[int, int], fit: str, *, nearest: bool = False) -> Pixels:
    """(h, w, c) at a size: stretched, or as large as fits with black around it."""
    h, w = pixels.shape[:2]
    if fit == "stretch":
        return _resized(pixels, size, nearest=nearest)
    scale = min(size[0] / h, size[1] / w)
    inner = max(1, min(size[0], round(h * scale))), max(1, min(size[1], round(w * scale)))
    out = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = _resized(pixels, inner, nearest=nearest)
    return out


def _resized(pixels: Pixels, size: tuple[int, int], *, nearest: bool) -> Pixels:
    """Bilinear, averaging where it shrinks (Pillow's antialiasing, on floats: 16 bits stay 16 bits), or nearest."""
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    channels = []
    for c in range(pixels.shape[2]):
        plane = np.ascontiguousarray(pixels[..., c])
        if plane.dtype == np.uint8:
            channels.append(np.asarray(Image.fromarray(plane).resize(size[::-1], method)))
        else:
            floats = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], method))
            channels.append(np.clip(np.rint(floats), 0, 65535).astype(np.uint16))
    return np.stack(channels, axis=-1)


def _gaussian(pixels: Pixels, sigma: float) -> Pixels:
    smooth = kernels.gaussian_filter(pixels.astype(np.float32), sigma, axes=(0, 1))
    levels: Pixels = np.clip(np.rint(smooth), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return levels


def _median(pixels: Pixels, size: int) -> Pixels:
    return kernels.median_filter(np.ascontiguousarray(pixels), size, axes=(0, 1))


def _clahe(pixels: Pixels, limit: float) -> Pixels:
    """Contrast-limited equalisation of grey, or of the luma of colours (ITU-R 601) with their ratios kept.

    The limit is a multiple of the mean count of 256 levels, at 16 bits as well.
    """
    if pixels.dtype == np.uint16:
        limit *= 256.0
    grid = tuple(min(8, side) for side in pixels.shape[:2])
    if pixels.shape[2] == 1:
        plane = kernels.clahe(np.ascontiguousarray(pixels[..., 0]), limit, (grid[0], grid[1]))
        return np.expand_dims(plane, -1)
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    better = kernels.clahe(luma, limit, (grid[0], grid[1]))
    ratio = better / np.maximum(luma, 1).astype(np.float64)
    colours: Pixels = np.clip(np.rint(pixels * ratio[..., None]), 0, 255).astype(np.uint8)
    return colours


def _gamma(pixels: Pixels, gamma: float) -> Pixels:
    top = int(np.iinfo(pixels.dtype).max)
    table = np.rint((np.arange(top + 1) / top) ** gamma * top).astype(pixels.dtype)
    mapped: Pixels = table[pixels]
    return mapped


def _normalised(pixels: Pixels, mean: float, std: float) -> Pixels:
    """S0 eq. 1, (x - mean) / std, with -3..3 spread over the levels; where std is 0 every pixel is the middle level."""
    top = int(np.iinfo(pixels.dtype).max)
    x = np.arange(top + 1) / top
    z = (x - mean) / std if std > 0 else np.zeros(top + 1)
    table = np.rint((np.clip(z, -_SIGMAS, _SIGMAS) + _SIGMAS) / (2 * _SIGMAS) * top).astype(pixels.dtype)
    mapped: Pixels = table[pixels]
    return mapped


def _moments(pixels: Pixels) -> Moments:
    top = int(np.iinfo(pixels.dtype).max)
    counts = np.bincount(pixels.reshape(-1), minlength=1).astype(np.float64)
    x = np.arange(len(counts)) / top
    return pixels.size, float(counts @ x), float(counts @ (x * x))


def _box(pixels: Pixels, crop: str) -> tuple[int, int, int, int]:
    """Rows and columns (top, left, bottom, right) that are kept."""
    h, w = pixels.shape[:2]
    if crop == "none":
        return 0, 0, h, w
    size = crop_size(crop)
    if size is not None:
        ch, cw = min(size[0], h), min(size[1], w)
        return (h - ch) // 2, (w - cw) // 2, (h - ch) // 2 + ch, (w - cw) // 2 + cw
    grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels.mean(axis=2).astype(pixels.dtype)
    found = breast_box(grey if grey.dtype == np.uint8 else (grey >> 8).astype(np.uint8))
    if found == (0, 0, h, w):
        return found
    margin = max(1, max(h, w) // 100)
    top, left = max(found[0] - margin, 0), max(found[1] - margin, 0)
    bottom, right = min(found[2] + margin, h), min(found[3] + margin, w)
    return top, left, bottom, right
