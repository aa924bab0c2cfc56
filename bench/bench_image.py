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
        yield from histograms(image((1024, 1024), dtype))
    for dtype in (np.uint8, np.uint16):
        yield from equalisations(image((1024, 1024), dtype))
    for dtype in (np.uint8, np.float32):
        yield from colours(image((1024, 1024, 3), dtype))


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
    for size in (3, 5, 7, 15, 31) if name == "uint8" else (3, 5, 7):
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


def equalisations(x: NDArray[np.generic]) -> Iterator[Case]:
    """CLAHE on the usual grid and on one that does not divide the image."""
    import cv2

    for grid in (8, 7):
        rival = cv2.createCLAHE(2.0, (grid, grid))
        yield Case(
            f"clahe {x.dtype.name} {grid}x{grid} tiles",
            {"medmpi": lambda: K.clahe(x, 2.0, grid), "opencv": lambda: rival.apply(x)},
            bytes=2.0 * x.nbytes,
            extra={"group": "clahe"},
        )


def colours(x: NDArray[np.generic]) -> Iterator[Case]:
    """Conversions of pixels; OpenCV's hue is in degrees, and it converts float32 only to float32."""
    import cv2

    name, pixels = x.dtype.name, x.size // 3
    single = (x / np.float32(255)).astype(np.float32) if name == "uint8" else x
    hsv = K.rgb_to_hsv(single)
    yield Case(
        f"rgb_to_hsv {name}",
        {"medmpi": lambda: K.rgb_to_hsv(x), "opencv": lambda: cv2.cvtColor(single, cv2.COLOR_RGB2HSV)},
        bytes=x.nbytes + 12.0 * pixels,
        extra={"group": "colour"},
    )
    yield Case(
        f"rgb_to_gray {name}",
        {"medmpi": lambda: K.rgb_to_gray(x), "opencv": lambda: cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)},
        bytes=x.nbytes * 4 / 3,
        extra={"group": "colour"},
    )
    if name == "float32":
        degrees = hsv * np.array([360, 1, 1], np.float32)
        yield Case(
            "hsv_to_rgb float32",
            {"medmpi": lambda: K.hsv_to_rgb(hsv), "opencv": lambda: cv2.cvtColor(degrees, cv2.COLOR_HSV2RGB)},
            bytes=24.0 * pixels,
            extra={"group": "colour"},
        )


def histograms(x: NDArray[np.generic]) -> Iterator[Case]:
    """256 bins of a given range, and Otsu's threshold."""
    import cv2

    name = x.dtype.name
    top = 1.0 if name == "float32" else float(np.iinfo(x.dtype).max) + 1
    yield Case(
        f"histogram {name}",
        {
            "medmpi": lambda: K.histogram(x, 256, (0, top)),
            "opencv": lambda: cv2.calcHist([x], [0], None, [256], [0, top]),
        },
        bytes=float(x.nbytes),
        extra={"group": "histogram"},
    )
    if name != "float32":
        yield Case(
            f"otsu {name}",
            {"medmpi": lambda: K.otsu_threshold(x), "opencv": lambda: cv2.threshold(x, 0, 255, cv2.THRESH_OTSU)},
            bytes=float(x.nbytes),
            extra={"group": "histogram"},
        )
