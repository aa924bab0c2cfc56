"""Scores of one group of patches: the unit of work of a whole-slide job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmpi.data import DataError
from medmpi.kernels.arrays import Array
from medmpi.nn import checkpoint
from medmpi.slide.grid import PATCH, points
from medmpi.slide.model import Classifier
from medmpi.slide.prefetch import ahead
from medmpi.slide.reader import BadTile, Pixels, Slide
from medmpi.slide.store import GroupPixels, Store
from medmpi.slide.windows import Counts, Engine, choose, probabilities

Transform = Callable[[Pixels], Pixels]


@dataclass
class GroupScores:
    """``blocks`` int32 (n, 4): first row, first column, rows, columns of each patch's points in the heatmap.

    ``scores`` float32 (points, columns) holds the blocks' points behind each other, row by row; ``bad`` lists the
    patches (row, column) whose pixels could not be read, with why.
    """

    blocks: NDArray[np.int32]
    scores: NDArray[np.float32]
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Predictor:
    """A classifier with its engine for one stride."""

    def __init__(
        self, classifier: Classifier, stride: int, *, patch: int = PATCH, engine: str = "auto",
        transform: Transform | None = None,
    ) -> None:  # fmt: skip
        if stride < 1:
            raise ValueError(f"predict: stride is {stride}, expected 1 or more")
        self.classifier, self.stride, self.transform = classifier, stride, transform
        count = max(1, -(-patch // stride))
        self.engine: Engine
        self.engine, self.why = choose(
            classifier.graph, classifier.window, stride, (count, count), channels=classifier.channels, engine=engine
        )

    def group(
        self, store: Store, group: int, slide: Slide | None = None, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> GroupScores:  # fmt: skip
        """The scores of a group's patches. Reading goes on ahead in a thread while the network computes.

        ``progress`` is told the patches that have been started, and how many there are.
        """
        meta, window = store.meta, self.classifier.window
        if max(window) // 2 > meta.context:
            raise DataError(
                store.path, f"has {meta.context} pixels of context, windows of {window} need {max(window) // 2}",
                "prepare it with more (--context)",
            )  # fmt: skip
        start = time.perf_counter()
        total_patches = len(store.group_patches(group))
        waits: list[float] = []
        blocks: list[tuple[int, int, int, int]] = []
        bad: list[tuple[int, int, str]] = []

        def tiles() -> Iterator[tuple[tuple[int, int, int, int], Pixels]]:
            """Read ahead, in a thread: a patch's block of points and the pixels of its windows."""
            pixels = GroupPixels(store, group, slide)
            for r, c in store.group_patches(group):
                rows = points(int(r), meta.level_shape[0], self.stride, window[0], meta.patch)
                columns = points(int(c), meta.level_shape[1], self.stride, window[1], meta.patch)
                if not rows.count or not columns.count:
                    continue
                h = (rows.count - 1) * self.stride + window[0]
                w = (columns.count - 1) * self.stride + window[1]
                try:
                    tile = pixels.region(rows.start, columns.start, h, w)
                    tile = self.transform(tile) if self.transform is not None else tile
                except BadTile as error:
                    bad.append((int(r), int(c), str(error)))
                    continue
                yield (rows.first, columns.first, rows.count, columns.count), tile

        def prepared() -> Iterator[tuple[Array, Counts]]:
            for block, tile in ahead(tiles(), waited=waits.append):
                blocks.append(block)
                if progress is not None:
                    progress(len(blocks), total_patches)
                yield self.classifier.prepare(tile), block[2:]

        found = [
            self.classifier.keep(probabilities(logits)).reshape(-1, len(self.classifier.columns))
            for logits in self.engine.run(prepared(), self.stride)
        ]
        total = time.perf_counter() - start
        return GroupScores(
            np.array(blocks, np.int32).reshape(-1, 4),
            np.concatenate(found) if found else np.empty((0, len(self.classifier.columns)), np.float32),
            bad,
            {"total": total, "wait": sum(waits), "compute": total - sum(waits)},
        )


def save_scores(path: Path, scores: GroupScores, metadata: dict[str, str]) -> None:
    """Writes a group's scores, checksummed, whole or not at all."""
    bad = np.array([(r, c) for r, c, _ in scores.bad], np.int32).reshape(-1, 2)
    checkpoint.save(path, {"blocks": scores.blocks, "scores": scores.scores, "bad": bad}, metadata)


def load_scores(path: Path) -> tuple[GroupScores, dict[str, str]]:
    """The inverse; CheckpointError where the file is missing or damaged."""
    arrays, metadata = checkpoint.load(path)
    if not {"blocks", "scores", "bad"} <= arrays.keys():
        raise checkpoint.CheckpointError(f"load: {path} has {sorted(arrays)}, expected a group's scores")
    bad = [(int(r), int(c), "") for r, c in arrays["bad"]]
    return GroupScores(arrays["blocks"], arrays["scores"], bad), metadata
