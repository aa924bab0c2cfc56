"""Scores of one group of patches: the unit of work of a whole-slide job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from medmpi.slide.rectangles import Rectangle, cover
from medmpi.slide.store import GroupPixels, Store
from medmpi.slide.windows import Counts, Engine, choose, probabilities

Transform = Callable[[Pixels], Pixels]
_BAND = 1 << 18  # pixels


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
        self.shapes = self.engine.shapes(stride, patch)

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
        rows, columns = (
            [points(i, limit, self.stride, side, meta.patch) for i in range(n)]
            for limit, side, n in zip(meta.level_shape, window, store.lookup.shape, strict=True)
        )
        own = store.group_patches(group)
        mine = np.array([(r, c) for r, c in own.tolist() if rows[r].count and columns[c].count], np.int32)
        waits: list[float] = []
        begun: list[Rectangle] = []
        bad: list[tuple[int, int, str]] = []

        def tile(source: GroupPixels, part: Rectangle) -> tuple[Pixels, Counts]:
            """The pixels of the windows of its patches, and how many there are."""
            spans = rows[part.row : part.row + part.rows], columns[part.column : part.column + part.columns]
            counts = sum(p.count for p in spans[0]), sum(p.count for p in spans[1])
            h, w = ((n - 1) * self.stride + side for n, side in zip(counts, window, strict=True))
            pixels = source.region(spans[0][0].start, spans[1][0].start, h, w)
            return pixels if self.transform is None else in_bands(self.transform, pixels), counts

        def tiles(source: GroupPixels, parts: Iterable[Rectangle]) -> Iterator[tuple[Rectangle, Pixels, Counts]]:
            """Read ahead, in a thread. What cannot be read costs the patches that see it, no more."""
            for part in parts:
                try:
                    read = tile(source, part)
                except BadTile as error:
                    if part.rows * part.columns == 1:
                        bad.append((part.row, part.column, str(error)))
                        continue
                    read = None
                if read is None:
                    yield from tiles(source, (Rectangle(r, c) for r, c in part.patches))
                else:
                    yield part, *read

        def everything() -> Iterator[tuple[Rectangle, Pixels, Counts]]:
            parts = cover(mine, self.shapes)
            # A small one is there soon, and the large ones are read while it is computed.
            return tiles(GroupPixels(store, group, slide), [*parts[-1:], *parts[:-1]])

        def prepared() -> Iterator[tuple[Array, Counts]]:
            done = 0
            for part, pixels, counts in ahead(everything(), waited=waits.append):
                begun.append(part)
                if progress is not None:
                    progress(done, len(own))
                done += part.rows * part.columns
                yield self.classifier.prepare(pixels), counts

        blocks: list[tuple[int, int, int, int]] = []
        found: list[NDArray[np.float32]] = []
        for i, logits in enumerate(self.engine.run(prepared(), self.stride)):
            scores = self.classifier.keep(probabilities(logits))
            top, left = rows[begun[i].row].first, columns[begun[i].column].first
            for r, c in begun[i].patches:
                y, x, h, w = rows[r].first, columns[c].first, rows[r].count, columns[c].count
                blocks.append((y, x, h, w))
                found.append(scores[y - top : y - top + h, x - left : x - left + w].reshape(h * w, -1))
        total = time.perf_counter() - start
        return GroupScores(
            np.array(blocks, np.int32).reshape(-1, 4),
            np.concatenate(found) if found else np.empty((0, len(self.classifier.columns)), np.float32),
            bad,
            {"total": total, "wait": sum(waits), "compute": total - sum(waits)},
        )


def in_bands(transform: Transform, pixels: Pixels) -> Pixels:
    """A pixel by pixel transform, rows by rows: its floating-point values take many times the memory of the pixels."""
    step = max(1, _BAND // pixels.shape[1])
    return np.concatenate([transform(pixels[y : y + step]) for y in range(0, len(pixels), step)])


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
