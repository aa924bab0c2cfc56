"""Batches for a device: read by threads into page-locked memory, copied while the step before computes, and changed and
normalised there, to the same numbers as on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi.data import Batch, Loader, Split, Transform
from medmpi.data.augment import Changes, EpochAugment

Ids = NDArray[np.int64]


class Staging:
    """The way to the device for one ``DeviceFeed`` after the other: a stream for copies, and places for two batches."""

    def __init__(self) -> None:
        self._uploads = K.Uploads()
        self._places: list[dict[str, Any]] = [{}, {}]
        self._turn = 0

    def send(self, **arrays: NDArray[Any]) -> list[Any]:
        """Copies of page-locked arrays on the device, under way; they hold until the second ``send`` after this one."""
        place = self._places[self._turn]
        self._turn = 1 - self._turn
        for name, array in arrays.items():
            if name not in place or place[name].shape != array.shape:
                place[name] = K.empty(array.shape, array.dtype, device="cuda")
            self._uploads.send(array, place[name])
        return [place[name] for name in arrays]


@dataclass(frozen=True)
class _Staged(Batch):
    """Images as they were read, and what is to be done to them."""

    changes: Changes | None = None


def _stage(transform: EpochAugment | None, images: NDArray[np.uint8], targets: NDArray[Any], ids: Ids) -> _Staged:
    """A batch in page-locked memory. Masks are changed here: they are small, and labels on the host are needed too."""
    changes = None if transform is None else transform.changes(images.shape, ids)
    if changes is not None and targets.ndim > 1:
        targets = changes.of_masks(targets)
    pixels, labels = K.pinned_empty(images.shape, np.uint8), K.pinned_empty(targets.shape, np.int64)
    pixels[...] = images
    labels[...] = targets
    return _Staged(pixels, labels, ids, None, changes)


class DeviceFeed:
    """An iterator over ``batches``, to be used in a ``with``, whose images and ``device_labels`` are on the device.

    A batch is copied while the one before is worked on, if the threads have it ready by then.
    """

    def __init__(
        self, staging: Staging, split: Split, batches: Sequence[Ids], transform: Transform | None, threads: int
    ) -> None:
        # changes that only the host can do are done there
        there = transform if isinstance(transform, EpochAugment) else None
        here = None if there is not None else transform
        self._staging, self._split = staging, split
        self._loader = Loader(split, batches, transform=here, finish=partial(_stage, there), threads=threads)
        self._left = len(batches)

    def __iter__(self) -> Iterator[Batch]:
        ahead = None
        while self._left or ahead is not None:
            staged, (pixels, labels) = ahead or self._send()
            # from here on this thread's work is behind the copy of this batch, and not behind that of the next one
            images, device_labels = self._made(staged.changes, pixels), labels.copy()
            ahead = self._send() if self._left and self._loader.ready else None
            yield Batch(images, staged.labels, staged.ids, device_labels)

    def _send(self) -> tuple[_Staged, list[Any]]:
        staged = next(self._loader)
        assert isinstance(staged, _Staged)
        self._left -= 1
        return staged, self._staging.send(pixels=staged.images, labels=staged.labels)

    def _made(self, changes: Changes | None, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if changes is not None:
            pixels = changes.of_images(pixels)
        return K.normalize(pixels, self._split.mean, self._split.std)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loader.close()
