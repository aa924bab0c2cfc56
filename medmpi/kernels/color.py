"""Colour spaces of RGB images."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from . import _core
from .arrays import Array, dtype_of, resident, result_for, shape_of


def rgb_to_hsv(image: NDArray[Any], *, out: Array | None = None) -> Array:
    """Hue, saturation and value (A. R. Smith's hexcone, SIGGRAPH 1978) of RGB pixels, scikit-image's formula.

    Args:
        image: C-contiguous (..., 3) array of uint8, taken as value / 255, or float32 in [0, 1].
        out: float32 array of image's shape to fill; it may not overlap ``image``.

    Returns:
        float32 (..., 3): hue in [0, 1), where 0 is red, 1/3 green, 2/3 blue and the circle closes; saturation and value
        in [0, 1]. Greys have hue and saturation 0. Within 1e-6 of scikit-image's float64 results; where the hue is
        close to red it may lie on the other side of the circle's seam. NaN is not looked for.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: a last axis that is not 3, an ``out``
        of another shape.
    """
    image = resident(image)
    kernels = {"uint8": _core.rgb_to_hsv_uint8, "float32": _core.rgb_to_hsv_float32}
    kernel = kernels[_pixels("rgb_to_hsv", image, *kernels)]
    y = result_for("rgb_to_hsv", image, image.shape, out)
    kernel(image, y)
    return y


def hsv_to_rgb(image: Array, *, out: Array | None = None) -> Array:
    """RGB of HSV pixels, the inverse of :func:`rgb_to_hsv`.

    Args:
        image: C-contiguous float32 (..., 3): hue, of which only the fraction counts, saturation and value in [0, 1].
        out: float32 array of image's shape to fill; it may not overlap ``image``.

    Returns:
        float32 (..., 3) RGB in [0, 1], within 1e-6 of scikit-image's float64 results.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: a last axis that is not 3, an ``out``
        of another shape.
    """
    image = resident(image)
    _pixels("hsv_to_rgb", image, "float32")
    y = result_for("hsv_to_rgb", image, image.shape, out)
    _core.hsv_to_rgb(image, y)
    return y


def rgb_to_gray(image: NDArray[Any], *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Luma of RGB pixels by ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.

    Args:
        image: C-contiguous (..., 3) array of uint8 or float32.
        out: array of image's dtype without the last axis to fill; it may not overlap ``image``.

    Returns:
        Array (...) of image's dtype; uint8 is rounded in 15-bit integers, OpenCV's result exactly.

    Raises:
        TypeError: another dtype, an array that is not C-contiguous. ValueError: a last axis that is not 3, an ``out``
        of another shape.
    """
    image = resident(image)
    kernels = {"uint8": _core.rgb_to_gray_uint8, "float32": _core.rgb_to_gray_float32}
    kernel = kernels[_pixels("rgb_to_gray", image, *kernels)]
    y = result_for("rgb_to_gray", image, image.shape[:-1], out, image.dtype)
    kernel(image, y)
    return y


def _pixels(op: str, image: NDArray[Any], *expected: str) -> str:
    """The dtype's name of an array of pixels of three channels."""
    shape = shape_of(op, "image", image)
    if not shape or shape[-1] != 3:
        raise ValueError(f"{op}: image has shape {shape}, expected three channels in the last axis")
    return dtype_of(op, "image", image, *expected)
