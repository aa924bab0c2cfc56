"""The batches of a rank: whole ones where images are needed, labels alone on the last stage of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from medmpi.data import Batch, Loader, Split, Transform
from medmpi.train.device_feed import DeviceFeed

if TYPE_CHECKING:
    from medmpi.train.job import Job
    from medmpi.train.split import Tiling

Ids = NDArray[np.int64]


def feed(
    job: Job, split: Split, batches: Sequence[Ids], transform: Transform | None = None
) -> Loader | LabelFeed | RowFeed | DeviceFeed:
    """An iterator over ``batches``, to be used in a ``with``. Only the first stage gets images, only the last labels.

    The last stage of a segmentation reads images too: masks come from the same files and are augmented with them. Where
    images are split into tiles they have this rank's rows; masks are whole. A device gets them in its memory.
    """
    grid = job.grid
    if job.staging is not None:
        return DeviceFeed(job.staging, split, batches, transform, job.options.workers)
    if grid.first or (grid.last and job.dataset.task == "segmentation"):
        loader = Loader(split, batches, transform=transform, threads=job.options.workers)
        return loader if job.tiling is None else RowFeed(loader, job.tiling)
    shape = (0, *job.dataset.image_size, job.dataset.channels)
    return LabelFeed(split.labels if grid.last else None, batches, shape)


class LabelFeed:
    """Stands in for a ``Loader`` where nobody looks at the images: the batches have none."""

    def __init__(self, labels: NDArray[np.int64] | None, batches: Sequence[Ids], shape: tuple[int, ...]) -> None:
        self._labels, self._batches, self._images = labels, batches, np.empty(shape, np.float32)

    def __iter__(self) -> Iterator[Batch]:
        nothing = np.empty(0, np.int64)
        for ids in self._batches:
            yield Batch(self._images, nothing if self._labels is None else self._labels[ids], ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class RowFeed:
    """The batches of a loader, with this rank's rows of the images."""

    def __init__(self, loader: Loader, tiling: Tiling) -> None:
        self._loader, self._tiling = loader, tiling

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield self._tiling.images(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loader.close()
