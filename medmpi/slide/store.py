"""One HDF5 file a slide: patches in groups, each group read at once, every pixel stored once (S4-10 to S4-14).

S4 stores a 448x448 tile a patch, uncompressed: every pixel four times, 8.67 times the bytes of the slides. Here the
level is cut into 224x224 *cells*; a patch is its own cell, and its 112 px of context are in the eight around it, which
neighbours share. Cells are lossless WebP (about 3.2 times smaller), or not stored at all: with ``pixels="none"`` the
file holds coordinates and cells are read from the slide.

Layout (schema 1): attributes ``schema``, ``schema_version``, ``meta`` (JSON, see :class:`StoreMeta`); ``lookup`` int32
(rows, columns), S4's patch matrix: a patch's number, or -1; ``patches`` int32 (n, 2) rows and columns; ``cells`` int32
(m, 4): row, column, group and place of each stored cell; ``bad`` int32 (b, 2): cells that could not be read;
``groups/NNNNN`` with ``data`` uint8 (the encoded cells behind each other, fletcher32) and ``offsets`` int64. What is
outside the slide is not stored: it is ``fill``.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmpi.data import DataError
from medmpi.slide.files import writing_hdf5
from medmpi.slide.grid import Cells, group_count, morton_order
from medmpi.slide.reader import FILL, BadTile, Pixels, Slide, open_slide, slide_id

SCHEMA, VERSION = "medmpi-slide-store", 1
STORES = ("webp", "none")
_CACHED = 256  # decoded cells that a group keeps: 37 MiB
_LARGE = 12  # cells: as many read from a slide at once cost less than one by one
_AT_ONCE = 64  # cells that are read before they are encoded
Cell = tuple[int, int]


@dataclass(frozen=True)
class StoreMeta:
    """What a store is of. Sizes are pixels of ``level``, ``mpp`` microns a pixel of it (vertical, horizontal)."""

    slide: str
    slide_id: str
    slide_bytes: int
    reader: str
    level: int
    downsample: float
    level_shape: tuple[int, int]
    level0_shape: tuple[int, int]
    mpp: tuple[float, float] | None
    patch: int
    context: int
    group_size: int
    pixels: str
    patches: int
    tissue: dict[str, Any]
    fill: int = FILL

    @property
    def groups(self) -> int:
        return group_count(self.patches, self.group_size)


def encode(cell: Pixels) -> bytes:
    """A cell as lossless WebP at its fastest setting."""
    out = io.BytesIO()
    Image.fromarray(cell).save(out, "webp", lossless=True, method=0, quality=0)
    return out.getvalue()


def decode(data: bytes) -> Pixels:
    """The inverse of :func:`encode`."""
    with Image.open(io.BytesIO(data), formats=("webp",)) as picture:
        return np.asarray(picture.convert("RGB"))


def write_store(
    path: Path,
    slide: Slide,
    chosen: NDArray[np.bool_],
    meta: Callable[[int], StoreMeta],
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoreMeta:
    """Writes the store of the patches that ``chosen`` (rows, columns) marks; it appears whole or not at all.

    ``meta(patches)`` is called once with their number. Cells that cannot be read are listed in ``bad``.
    """
    patches = np.argwhere(chosen).astype(np.int32)
    patches = patches[morton_order(patches)]
    about = meta(len(patches))
    lookup = np.full(chosen.shape, -1, np.int32)
    lookup[patches[:, 0], patches[:, 1]] = np.arange(len(patches), dtype=np.int32)
    cells: list[tuple[int, int, int, int]] = []
    bad: list[Cell] = []
    with writing_hdf5(path) as file, ThreadPoolExecutor(threads) as pool:
        file.attrs.update(schema=SCHEMA, schema_version=VERSION, meta=json.dumps(asdict(about), sort_keys=True))
        file.create_dataset("lookup", data=lookup, compression="gzip", fletcher32=True)
        file.create_dataset("patches", data=patches)
        stored: set[Cell] = set()
        for g in range(about.groups):
            group = file.create_group(f"groups/{g:05d}")
            own = patches[g * about.group_size : (g + 1) * about.group_size]
            if about.pixels == "webp":
                fresh = [cell for cell in needed_cells(own, chosen.shape, about) if cell not in stored]
                stored.update(fresh)
                encoded: list[bytes] = []
                for first in range(0, len(fresh), _AT_ONCE):  # a pool takes all its input at once
                    batch = fresh[first : first + _AT_ONCE]
                    encoded += pool.map(encode, _read_cells(slide, about, batch, bad))
                blob = np.frombuffer(b"".join(encoded), np.uint8)
                if len(blob):  # else all its cells came with earlier groups
                    group.create_dataset("data", data=blob, chunks=(min(len(blob), 1 << 20),), fletcher32=True)
                group.create_dataset("offsets", data=np.cumsum([0, *map(len, encoded)], dtype=np.int64))
                cells += [(r, c, g, i) for i, (r, c) in enumerate(fresh)]
            file.flush()
            progress(min((g + 1) * about.group_size, len(patches)), len(patches))
        file.create_dataset("cells", data=np.array(cells, np.int32).reshape(-1, 4))
        file.create_dataset("bad", data=np.array(bad, np.int32).reshape(-1, 2))
    return about


def needed_cells(patches: Cells, shape: tuple[int, int], meta: StoreMeta) -> list[Cell]:
    """The cells inside the grid that the patches and their context touch, patches first, each once."""
    reach = -(-meta.context // meta.patch)
    found: dict[Cell, None] = {(int(r), int(c)): None for r, c in patches}
    for r, c in patches:
        for y in range(max(r - reach, 0), min(r + reach + 1, shape[0])):
            for x in range(max(c - reach, 0), min(c + reach + 1, shape[1])):
                found.setdefault((int(y), int(x)))
    return list(found)


def _read_cells(slide: Slide, meta: StoreMeta, cells: Sequence[Cell], bad: list[Cell]) -> Iterator[Pixels]:
    for cell in cells:
        try:
            yield read_cell(slide, meta, cell)
        except BadTile:
            bad.append(cell)
            yield np.full((meta.patch, meta.patch, 3), meta.fill, np.uint8)


def read_cell(slide: Slide, meta: StoreMeta, cell: Cell) -> Pixels:
    """A cell from the slide itself; BadTile where it cannot be decoded."""
    size = meta.patch
    return slide.read(meta.level, cell[0] * size, cell[1] * size, size, size, fill=meta.fill)


class Store:
    """A store opened for reading; nothing is ever written to it. DataError where it is no whole store."""

    def __init__(self, path: Path, *, locking: bool | None = None) -> None:
        import h5py

        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=locking)
        except FileNotFoundError:
            raise DataError(path, "no such file", "run 'medmpi slide prepare' first") from None
        except OSError as error:
            raise DataError(path, error, "prepare the slide again") from error
        try:
            if self._file.attrs.get("schema") != SCHEMA:
                raise DataError(path, "is not a slide store", "run 'medmpi slide prepare'")
            version = int(self._file.attrs["schema_version"])
            if version != VERSION:
                raise DataError(path, f"has schema version {version}, this is {VERSION}", "prepare the slide again")
            fields = json.loads(self._file.attrs["meta"])
            for name in ("level_shape", "level0_shape", "mpp"):
                fields[name] = tuple(fields[name]) if fields[name] is not None else None
            self.meta = StoreMeta(**fields)
            self.patches: Cells = self._file["patches"][...]
            self.lookup: NDArray[np.int32] = self._file["lookup"][...]
            self.bad: set[Cell] = {(int(r), int(c)) for r, c in self._file["bad"][...]}
            self._where = {(int(r), int(c)): (int(g), int(i)) for r, c, g, i in self._file["cells"][...]}
        except (KeyError, TypeError, ValueError, OSError) as error:
            self._file.close()
            raise DataError(path, f"is damaged: {error}", "prepare the slide again") from error

    def group_patches(self, group: int) -> Cells:
        """int32 (n, 2) rows and columns of a group's patches. DataError names the groups there are."""
        if not 0 <= group < self.meta.groups:
            raise DataError(self.path, f"has no group {group}", f"it has {self.meta.groups}")
        return self.patches[group * self.meta.group_size : (group + 1) * self.meta.group_size]

    def read_group(self, group: int) -> dict[Cell, bytes]:
        """The encoded cells that a group's patches need: its own in one read, those of neighbours one by one."""
        wanted: dict[int, dict[int, Cell]] = {}
        for cell in needed_cells(self.group_patches(group), self.lookup.shape, self.meta):
            g, i = self._where[cell]
            wanted.setdefault(g, {})[i] = cell
        found: dict[Cell, bytes] = {}
        try:
            for g, places in wanted.items():
                part = self._file[f"groups/{g:05d}"]
                offsets = part["offsets"][...]
                if g == group:
                    data = part["data"][...].tobytes()
                    found |= {cell: data[offsets[i] : offsets[i + 1]] for i, cell in places.items()}
                else:
                    data_set = part["data"]
                    found |= {c: data_set[offsets[i] : offsets[i + 1]].tobytes() for i, c in places.items()}
        except (KeyError, OSError, IndexError) as error:
            raise DataError(self.path, f"group {group} cannot be read: {error}", "prepare the slide again") from error
        return found

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class GroupPixels:
    """The pixels around a group's patches, from the store or, where it holds coordinates alone, from the slide."""

    def __init__(self, store: Store, group: int, slide: Slide | None = None) -> None:
        self.meta, self._slide, self._bad = store.meta, slide, store.bad
        self._limit = store.lookup.shape
        self._encoded = store.read_group(group) if store.meta.pixels == "webp" else None
        self._cache: OrderedDict[Cell, Pixels] = OrderedDict()
        if self._encoded is None and slide is None:
            raise ValueError("GroupPixels: the store holds coordinates alone, expected the open slide too")

    def region(self, y: int, x: int, h: int, w: int) -> Pixels:
        """uint8 (h, w, 3) from (y, x); BadTile where a cell of it could not be read."""
        # A level of fractional downsample is read between its pixels: there it must be the same cells for all.
        if self._encoded is not None or not self.meta.downsample.is_integer():
            return self._from_cells(y, x, h, w)
        if h * w < _LARGE * self.meta.patch**2:
            with contextlib.suppress(BadTile):  # what is bad may be beside the region
                return self._from_cells(y, x, h, w)
        assert self._slide is not None
        return self._slide.read(self.meta.level, y, x, h, w, fill=self.meta.fill)

    def _from_cells(self, y: int, x: int, h: int, w: int) -> Pixels:
        size = self.meta.patch
        out = np.full((h, w, 3), self.meta.fill, np.uint8)
        for r in range(max(y // size, 0), min(-(-(y + h) // size), self._limit[0])):
            for c in range(max(x // size, 0), min(-(-(x + w) // size), self._limit[1])):
                cell = self._cell((r, c))
                y0, y1 = max(y, r * size), min(y + h, (r + 1) * size)
                x0, x1 = max(x, c * size), min(x + w, (c + 1) * size)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = cell[
                    y0 - r * size : y1 - r * size, x0 - c * size : x1 - c * size
                ]
        return out

    def _cell(self, cell: Cell) -> Pixels:
        if cell in self._bad:
            raise BadTile(self.meta.slide, f"cell {cell} could not be read when the store was made", "")
        if cell in self._cache:
            self._cache.move_to_end(cell)
            return self._cache[cell]
        if self._encoded is not None:
            try:
                pixels = decode(self._encoded[cell])
            except (OSError, ValueError) as error:
                raise BadTile(self.meta.slide, f"cell {cell} of the store is damaged: {error}", "") from error
        else:
            assert self._slide is not None
            pixels = read_cell(self._slide, self.meta, cell)
        self._cache[cell] = pixels
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return pixels


def open_source(store: Store, folder: Path | None = None) -> Slide:
    """The slide that a store of coordinates was made from, checked by its content; ``folder`` is where it moved to."""
    path = Path(store.meta.slide)
    if folder is not None:
        path = folder / path.name
    if not path.exists():
        raise DataError(path, "the slide is not there any more", "name its folder with --slides")
    if slide_id(path) != store.meta.slide_id:
        raise DataError(path, f"has other content than when {store.path.name} was made", "prepare the slide again")
    return open_slide(path)
