"""Gaussian filter beside OpenCV and scipy.ndimage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medmpi import kernels as K

from .harness import Case, Work


def cases(rivals: set[str]) -> Iterator[Case]:
    """Square float32 images, truncate 4, reflecting border; the recursive filter for large sigmas."""
    for size in (512, 2048):
        x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
        for sigma in (1, 2, 5, 20, 50):
            method = "fir" if sigma < 10 else "recursive"
            contenders: dict[str, Work] = {"medmpi": lambda: K.gaussian_filter(x, sigma, method=method)}
            if "scipy" in rivals:
                from scipy import ndimage

                contenders["scipy"] = lambda: ndimage.gaussian_filter(x, sigma)
            if "opencv" in rivals or "torch" in rivals:  # torch has no Gaussian filter: OpenCV is the rival
                import cv2

                cv2.setNumThreads(K.threads())
                width = 2 * int(4 * sigma + 0.5) + 1
                contenders["opencv"] = lambda: cv2.GaussianBlur(x, (width, width), sigma, borderType=cv2.BORDER_REFLECT)
            extra = {"group": "gaussian" if method == "fir" else "recursive gaussian"}
            yield Case(f"{size}x{size} sigma {sigma}", contenders, bytes=8.0 * size * size, extra=extra)
