"""The heatmap of a slide, put together from groups' scores by the coordinates stored with them.

An HDF5 file: ``scores`` float32 (rows, columns, classes kept), ``counts`` uint32 (rows, columns): how many windows a
point has had, 0 outside the patches that were evaluated, where scores are 0 and never NaN. Attribute ``meta`` (JSON,
:class:`HeatmapMeta`) says where the points are: (i, j) is the centre of the window at ``stride * (i, j)`` in pixels of
the analysed level, ``downsample`` times that on level 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.data import DataError
from medmpi.slide.files import writing_hdf5
from medmpi.slide.grid import heatmap_shape, points
from medmpi.slide.predict import GroupScores
from medmpi.slide.store import Store

SCHEMA, VERSION = "medmpi-heatmap", 1
_CHUNK = 64  # points a side, at least
_RECTANGLE = 1 << 22  # points that are written at once


@dataclass(frozen=True)
class HeatmapMeta:
    """What a heatmap shows."""

    slide: str
    slide_id: str
    level: int
    downsample: float
    level_shape: tuple[int, int]
    level0_shape: tuple[int, int]
    mpp: tuple[float, float] | None
    stride: int
    patch: int
    classes: tuple[str, ...]
    model: str
    missing: tuple[tuple[int, int], ...] = ()

    @property
    def step(self) -> float:
        """Level-0 pixels between points."""
        return self.stride * self.downsample


@dataclass
class Heatmap:
    """A heatmap in memory."""

    scores: NDArray[np.float32]
    counts: NDArray[np.uint32]
    meta: HeatmapMeta

    def of(self, name: str | None = None) -> NDArray[np.float32]:
        """The scores (rows, columns) of one class, the first kept where None. DataError names the classes."""
        if name is None:
            return self.scores[..., 0]
        if name not in self.meta.classes:
            known = ", ".join(self.meta.classes)
            raise DataError(self.meta.slide, f"has no scores of class {name!r}", f"expected {known}")
        return self.scores[..., self.meta.classes.index(name)]


def meta_for(store: Store, stride: int, classes: tuple[str, ...], model: str) -> HeatmapMeta:
    """The metadata of a store's heatmap."""
    m = store.meta
    return HeatmapMeta(
        m.slide, m.slide_id, m.level, m.downsample, m.level_shape, m.level0_shape, m.mpp, stride, m.patch, classes,
        model,
    )  # fmt: skip


def assemble(
    path: Path,
    store: Store,
    meta: HeatmapMeta,
    groups: Iterable[GroupScores],
    *,
    partial: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> HeatmapMeta:
    """Writes the heatmap of all groups of a store; memory is that of one group.

    Every patch must come exactly once, at its place: else DataError lists what is missing or wrong, and nothing is
    written. With ``partial`` missing patches are left uncovered and listed in the metadata.
    """  # fmt: skip
    rows, columns = heatmap_shape(meta.level_shape, meta.stride)
    kept = len(meta.classes)
    per_patch = max(1, meta.patch // meta.stride)
    side = per_patch * -(-_CHUNK // per_patch)
    chunk = min(side, rows), min(side, columns)
    expected = _expected(store, meta)
    seen: set[tuple[int, int]] = set()
    with writing_hdf5(path, rdcc_nbytes=64 << 20) as file:
        file.attrs.update(schema=SCHEMA, schema_version=VERSION)
        out = file.create_dataset(
            "scores", (rows, columns, kept), np.float32, chunks=(*chunk, kept), compression="gzip",
            compression_opts=1, shuffle=True, fletcher32=True,
        )  # fmt: skip
        counts = file.create_dataset(
            "counts", (rows, columns), np.uint32, chunks=chunk, compression="gzip", compression_opts=1,
            shuffle=True, fletcher32=True,
        )  # fmt: skip
        for scores in groups:
            at, placed = 0, []
            for y, x, h, w in scores.blocks.tolist():
                if expected.get((y, x)) != (h, w):
                    raise DataError(store.path, f"scores came for {h}x{w} points at ({y}, {x}): no patch", "")
                if (y, x) in seen:
                    raise DataError(store.path, f"scores of the points at ({y}, {x}) came twice", "")
                seen.add((y, x))
                block = scores.scores[at : at + h * w].reshape(h, w, kept)
                if not np.isfinite(block).all():
                    raise DataError(store.path, f"scores at ({y}, {x}) are not finite", "check the model's weights")
                placed.append((y, x, block))
                at += h * w
            _place(out, counts, placed)
            progress()
        missing = sorted(expected.keys() - seen)
        if missing and not partial:
            text = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            raise DataError(
                store.path, f"{len(missing)} of {len(expected)} patches are missing, those with points at {text}",
                "run the job again, or stitch with --partial",
            )  # fmt: skip
        meta = HeatmapMeta(**{**asdict(meta), "missing": tuple(missing)})
        file.attrs["meta"] = json.dumps(asdict(meta), sort_keys=True)
    return meta


def _place(out: Any, counts: Any, placed: list[tuple[int, int, NDArray[np.float32]]]) -> None:
    """Writes a group's blocks: as one rectangle where they nearly fill it, as a write costs the same for any size."""
    if not placed:
        return
    top, left = min(y for y, _, _ in placed), min(x for _, x, _ in placed)
    bottom, right = max(y + len(b) for y, _, b in placed), max(x + b.shape[1] for _, x, b in placed)
    area = (bottom - top) * (right - left)
    if area > _RECTANGLE or area > 4 * sum(b[..., 0].size for _, _, b in placed):
        for y, x, block in placed:
            out[y : y + len(block), x : x + block.shape[1]] = block
            counts[y : y + len(block), x : x + block.shape[1]] = 1
        return
    whole = np.s_[top:bottom, left:right]
    scores, covered = out[whole], counts[whole]  # neighbours may be there already
    for y, x, block in placed:
        part = np.s_[y - top : y - top + len(block), x - left : x - left + block.shape[1]]
        scores[part], covered[part] = block, 1
    out[whole], counts[whole] = scores, covered


def _expected(store: Store, meta: HeatmapMeta) -> dict[tuple[int, int], tuple[int, int]]:
    """First row and column -> rows and columns of the points of every patch that owns some."""
    found = {}
    rows, columns = (
        [points(i, limit, meta.stride, 0, meta.patch) for i in range(count)]
        for limit, count in zip(meta.level_shape, store.lookup.shape, strict=True)
    )
    for r, c in store.patches.tolist():
        if rows[r].count and columns[c].count:
            found[rows[r].first, columns[c].first] = (rows[r].count, columns[c].count)
    return found


def _thinned(data: Any, k: int) -> NDArray[Any]:
    """Every k-th row and column, read in bands of whole chunks."""
    if k == 1:
        return np.asarray(data[...])
    band = k * max(1, _CHUNK // k)
    return np.concatenate([data[y : y + band][::k, ::k] for y in range(0, data.shape[0], band)])


def load_heatmap(path: Path, *, most: int | None = None) -> Heatmap:
    """Reads a heatmap; DataError where it is none, or damaged.

    One of more than ``most`` points is thinned out while it is read, to every k-th point: that of a coarser stride.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") != SCHEMA:
                raise DataError(path, "is not a heatmap", "run 'medmpi slide stitch' first")
            if int(file.attrs["schema_version"]) != VERSION:
                raise DataError(path, f"has schema version {file.attrs['schema_version']}, this is {VERSION}", "")
            fields: dict[str, Any] = json.loads(file.attrs["meta"])
            for name in ("level_shape", "level0_shape", "mpp", "classes"):
                fields[name] = tuple(fields[name]) if fields[name] is not None else None
            fields["missing"] = tuple((int(y), int(x)) for y, x in fields["missing"])
            rows, columns = file["counts"].shape
            k = 1 if most is None else max(1, int(np.ceil((rows * columns / most) ** 0.5)))
            if k > 1:
                fields["stride"] *= k
            scores, counts = (_thinned(file[name], k) for name in ("scores", "counts"))
            return Heatmap(scores, counts, HeatmapMeta(**fields))
    except FileNotFoundError:
        raise DataError(path, "no such file", "run 'medmpi slide stitch' first") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(path, f"cannot be read: {error}", "stitch it again") from error
