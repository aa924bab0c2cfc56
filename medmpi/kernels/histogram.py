"""Histograms of grey levels, and Otsu's threshold."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .arguments import speaks_for
from .arrays import dtype_of, empty_beside, resident, shape_of, to_host

_LARGEST_BINS = 2**24 - 1


@speaks_for("value_range")
def histogram(
    image: NDArray[Any], bins: int = 256, range: tuple[float, float] | None = None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Counts of equal bins and the edges of the bins, with ``numpy.histogram``'s meaning and results.

    Args:
        image: C-contiguous uint8, uint16 or float32 array of any shape.
        bins: number of bins, 1 to 2^24 - 1.
        range: the first and the last edge, in the image's units; the image's smallest and largest values when None.
            Values outside are not counted, nor is NaN where a range is given.

    Returns:
        int64 counts (bins,) and the edges (bins + 1,), float32 for a float32 image, else float64. Bin i holds
        ``edges[i] <= value < edges[i + 1]``, the last one its upper edge too.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: an image without values and without a
        range, a number of bins or a range that does not fit, values that are not finite where no range is given.
    """
    image = resident(image)
    _checked("histogram", image)
    try:
        count = operator.index(bins)
    except TypeError:
        raise ValueError(f"histogram: bins is {bins!r}, expected an integer") from None
    if not 1 <= count <= _LARGEST_BINS:
        raise ValueError(f"histogram: bins is {bins}, expected 1 to {_LARGEST_BINS}")
    if range is not None and np.shape(range) != (2,):
        raise ValueError(f"histogram: range is {range!r}, expected two finite ascending numbers")
    if range is not None and not (np.isfinite(range[0]) and np.isfinite(range[1]) and range[0] <= range[1]):
        raise ValueError(f"histogram: range is {tuple(range)}, expected two finite ascending numbers")
    if range is None and image.size == 0:
        raise ValueError(f"histogram: image has shape {image.shape}, expected values where no range is given")
    if image.dtype == np.float32:
        return _of_floats(image, count, range)
    levels = _levels(image)
    present = np.flatnonzero(levels)
    if range is None:
        range = (int(present[0]), int(present[-1]))
    low, high = range
    if 0 <= low < high <= len(levels) and low == int(low) and high - low == count:  # a bin for each level
        counts = levels[int(low) : int(high)].copy()
        counts[-1] += levels[int(high) : int(high) + 1].sum()  # the last one is closed
        return counts, np.linspace(low, high, count + 1)
    # every level stands for its pixels
    counts, edges = np.histogram(present.astype(image.dtype), count, range, weights=levels[present])
    return counts.astype(np.int64, copy=False), edges


@speaks_for("value_range")
@speaks_for("histogram")
def otsu_threshold(
    image: NDArray[Any] | None = None,
    *,
    bins: int = 256,
    hist: tuple[ArrayLike, ArrayLike] | None = None,
) -> float:
    """The threshold that separates two classes with the largest variance between them (N. Otsu, 1979).

    The class above holds the values greater than the threshold. Integers are thresholded exactly, one bin for each
    level; float32 by a histogram. The formula is scikit-image's ``threshold_otsu``, evaluated in float64.

    Args:
        image: C-contiguous uint8, uint16 or float32 array of any shape.
        bins: number of bins of a float32 image.
        hist: counts and bin centres (two arrays of equal length, centres ascending), instead of an image.

    Returns:
        The threshold in the image's units: a level of the image, or the centre of a bin. An image of one value has that
        value as its threshold.

    Raises:
        TypeError: another dtype, neither or both of an image and a histogram. ValueError: an image without values or
        with values that are not finite, a histogram without counts, with negative ones or of unequal lengths.
    """
    if (image is None) == (hist is None):
        raise TypeError("otsu_threshold: expected either an image or a histogram")
    if hist is not None:
        counts, centres = (np.asarray(part) for part in hist)
        if counts.ndim != 1 or counts.shape != centres.shape:
            raise ValueError(
                f"otsu_threshold: hist has shapes {counts.shape} and {centres.shape}, expected two equal lengths"
            )
        if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.any()):
            raise ValueError("otsu_threshold: hist has counts that are negative, not finite or all 0")
    else:
        assert image is not None
        image = resident(image)
        _checked("otsu_threshold", image)
        if image.size == 0:
            raise ValueError(f"otsu_threshold: image has shape {image.shape}, expected values")
        if image.dtype == np.float32:
            low, high = _core.value_range(image)
            if low == high:
                return float(low)
            counts, edges = histogram(image, bins)
            centres = (edges[:-1] + edges[1:]) / 2
        else:
            counts = _levels(image)
            centres = np.arange(len(counts))
    used = np.flatnonzero(counts)
    span = slice(used[0], used[-1] + 1)
    return float(centres[span][_best_split(counts[span].astype(np.float64), centres[span].astype(np.float64))])


def _best_split(counts: NDArray[np.float64], centres: NDArray[np.float64]) -> int:
    """The last bin of the lower class. The first and the last bin hold something."""
    if len(counts) == 1:
        return 0
    moments = counts * centres
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below, mean_above = np.cumsum(moments) / below, np.cumsum(moments[::-1])[::-1] / above
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return int(np.argmax(between))


def _of_floats(
    image: NDArray[Any], bins: int, range: tuple[float, float] | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    if range is None:
        range = _core.value_range(image)
        if not np.isfinite(range).all():
            raise ValueError(f"histogram: image has values that are not finite, its range is {tuple(range)}")
        range = (np.float32(range[0]), np.float32(range[1]))  # type: ignore[assignment]
    else:
        range = (float(range[0]), float(range[1]))  # numpy's own scalars would make the edges float64
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.histogram_bin_edges(np.empty(0, np.float32), bins, range)
        if not (np.diff(edges) > 0).all() or not np.isfinite(edges[-1] - edges[0]):
            raise ValueError(f"histogram: range is {tuple(map(float, range))}, float32 cannot hold {bins} bins of it")
    counts = empty_beside(image, (bins,), np.int64)
    _core.histogram_float32(image, edges, counts)
    return to_host(counts), edges


def _levels(image: NDArray[Any]) -> NDArray[np.int64]:
    """Counts of all levels of an integer image."""
    counts = empty_beside(image, (np.iinfo(image.dtype).max + 1,), np.int64)
    kernel = _core.histogram_uint8 if image.dtype == np.uint8 else _core.histogram_uint16
    kernel(image, counts)
    return to_host(counts)


def _checked(op: str, image: NDArray[Any]) -> None:
    shape_of(op, "image", image)
    dtype_of(op, "image", image, "uint8", "uint16", "float32")
