"""Image kernels beside OpenCV and scipy.ndimage: medians, contrast, colours, histograms, thresholds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K

from .harness import Case, Work


def cases(rivals: set[str]) -> Iterator[Case]:
    """Square images of noise on a slope. OpenCV is the rival where it has the operation, else scipy."""
    import cv2

    cv2.setNumThreads(K.threads())
    for dtype in (np.uint8, np.uint16, np.float32):
        yield from medians(image((1024, 1024), dtype))


def image(shape: tuple[int, ...], dtype: type) -> NDArray[np.generic]:
    """Noise on a slope over most of the dtype's range."""
    rng = np.random.default_rng(0)
    top = 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)
    slope = np.linspace(0.2, 0.8, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.clip((slope + 0.07 * rng.standard_normal(shape)) * top, 0, top).astype(dtype)


def medians(x: NDArray[np.generic]) -> Iterator[Case]:
    """Square windows, and a cube on a volume of the same number of elements."""
    import cv2
    from scipy import ndimage

    name = x.dtype.name
    for size in (3, 5, 7, 15, 31):
        contenders: dict[str, Work] = {"medmpi": lambda: K.median_filter(x, size, "nearest")}
        if size <= 5 or name == "uint8":
            contenders["opencv"] = lambda: cv2.medianBlur(x, size)
        else:
            contenders["scipy"] = lambda: ndimage.median_filter(x, size=size, mode="nearest")
        yield Case(f"median {name} {size}x{size}", contenders, bytes=2.0 * x.nbytes, extra={"group": "median"})
    volume = x.reshape(16, 256, 256)
    yield Case(
        f"median {name} 3x3x3",
        {"medmpi": lambda: K.median_filter(volume, 3), "scipy": lambda: ndimage.median_filter(volume, size=3)},
        bytes=2.0 * x.nbytes,
        extra={"group": "median of volumes"},
    )
