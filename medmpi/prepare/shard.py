"""An HDF5 file of frames, as ``hdf5:`` reads it: images with labels or masks, whose they are, and of which split."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESERVE = 8 << 20  # bytes of a disk that are left free for what the library keeps back


class Shard:
    """Fills an open h5py.File; images and masks go in one by one."""

    def __init__(self, file: Any, split: str | None, classes: tuple[str, ...]) -> None:
        self.file, self.classes = file, classes
        self.prefix = "" if split is None else f"{split}_"
        self.labels: list[int] = []
        self.names: list[str] = []
        self.groups: list[str] = []
        self.spacings: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return len(self.names)

    def problem(self, pixels: NDArray[Any]) -> str | None:
        """Why an image (h, w, c) cannot go into this shard; None if it can."""
        if not self.names:
            return None
        images, shape = self.file[self.prefix + "images"], _stored(pixels).shape
        if shape == images.shape[1:] and pixels.dtype == images.dtype:
            return None
        if shape[:2] == images.shape[1:3]:
            kinds = ["in colours" if len(found) == 3 else "grey" for found in (shape, images.shape[1:])]
            return f"it is {kinds[0]}, the images before it are {kinds[1]}; prepare them apart"
        sizes = ("x".join(map(str, found[:2])) for found in (shape, images.shape[1:]))
        return "it is {}, the images before it are {}; give --image-size".format(*sizes)

    def add(
        self,
        pixels: NDArray[Any],
        mask: NDArray[Any] | None,
        *,
        name: str,
        group: str,
        label: str | None,
        spacing: tuple[float, float] | None,
    ) -> None:
        """An image (h, w, c) with its mask (h, w) or its class. OSError before the disk is full."""
        self._check_room(pixels.nbytes + (0 if mask is None else mask.nbytes))
        self._append("images", _stored(pixels))
        if mask is not None:
            self._append("masks", mask)
        self.names.append(name)
        self.groups.append(group)
        self.spacings.append(spacing or (np.nan, np.nan))
        self.labels.append(self.classes.index(label) if label in self.classes else 0)

    def _check_room(self, size: int) -> None:
        """The library does not survive a full disk: it fails again, or crashes, whenever it closes the file."""
        found = os.statvfs(self.file.filename)
        if found.f_bavail * found.f_frsize < size + _RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.filename)

    def _append(self, what: str, array: NDArray[Any]) -> None:
        name = self.prefix + what
        if not self.names:
            self.file.create_dataset(
                name, (0, *array.shape), array.dtype, maxshape=(None, *array.shape), chunks=(1, *array.shape),
                fletcher32=True, compression="lzf",
            )  # fmt: skip
        found = self.file[name]
        found.resize(len(self.names) + 1, axis=0)
        found[-1] = array

    def finish(self, settings: str) -> None:
        """Adds what belongs to all images."""
        # Strings of fixed length: a damaged heap of others can hang the library.
        for name, texts in (("names", self.names), ("groups", self.groups)):
            self.file[self.prefix + name] = np.array([t.encode("utf-8", "backslashreplace") for t in texts])
        self.file[self.prefix + "spacing_mm"] = np.array(self.spacings)
        if self.classes:
            self.file[self.prefix + "labels"] = np.array(self.labels, np.int64)
            self.file.attrs["classes"] = list(self.classes)
        self.file.attrs["settings"] = settings


def _stored(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
