"""``medmpi slide prepare``: tissue, patch grid and store of a slide (S4's first step)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medmpi import kernels as K
from medmpi.data import DataError
from medmpi.files import replacing
from medmpi.slide.grid import CONTEXT, PATCH, group_size, patches_with_tissue
from medmpi.slide.reader import open_slide, slide_id
from medmpi.slide.store import STORES, Store, StoreMeta, write_store
from medmpi.slide.tissue import DOWNSAMPLE, MODES, find_tissue, preview, thumbnail

# Patches a group: seconds of work for a small network, so that a slide alone keeps several ranks busy to the end. S4's
# 400 are what its memory held; a group's size hardly changes how fast it is read from these stores (tune-groups).
GROUP = 100
S4_RATIO = 6076 / 701  # bytes of its stores to those of its slides (table I): 8.67


@dataclass(frozen=True)
class PrepareOptions:
    """How slides become stores. ``group_size`` patches a group, or as many as ``memory`` bytes of S4's tiles hold."""

    mpp: float | None = None
    level: int | None = None
    patch: int = PATCH
    context: int = CONTEXT
    tissue: str = "hs"
    least_tissue: float = 0.0
    group_size: int = GROUP
    memory: int | None = None
    pixels: str = "webp"

    def __post_init__(self) -> None:
        if self.tissue not in (*MODES, "all"):
            raise ValueError(f"prepare: tissue is {self.tissue!r}, expected one of {', '.join((*MODES, 'all'))}")
        if self.pixels not in STORES:
            raise ValueError(f"prepare: pixels is {self.pixels!r}, expected one of {', '.join(STORES)}")
        if self.patch < 1 or self.context < 0 or self.group_size < 1 or not 0 <= self.least_tissue < 1:
            raise ValueError("prepare: expected patch, group_size above 0, context not below 0, 0 <= least_tissue < 1")

    @property
    def patch_bytes(self) -> int:
        """S4's S: bytes of a patch with its context (448 * 448 * 3 = 602,112)."""
        return (self.patch + 2 * self.context) ** 2 * 3

    @property
    def patches_per_group(self) -> int:
        return group_size(self.memory, self.patch_bytes) if self.memory is not None else self.group_size


class NoTissue(DataError):
    """A slide without tissue: there is nothing to do, which is no failure."""


def store_path(folder: Path, slide: Path, identity: str) -> Path:
    """Stems collide between folders; contents do not."""
    return folder / f"{slide.stem}-{identity}.h5"


def prepare(
    slide_path: Path,
    folder: Path,
    options: PrepareOptions,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Path, StoreMeta, dict[str, float]]:
    """Makes the store of one slide, and a preview of its mask beside it; returns path, metadata and seconds per stage.
    ``progress`` is told the share that is done, one half for the tissue and one for the store.

    A whole store of the same content and options is left as it is. NoTissue where there is none.
    """  # fmt: skip
    start = time.perf_counter()
    identity = slide_id(slide_path)
    path = store_path(folder, slide_path, identity)
    if path.exists():
        with Store(path) as old:
            if _same(old.meta, options):
                return path, old.meta, {"skipped": 1.0}
    with open_slide(slide_path) as slide:
        if options.level is not None and not 0 <= options.level < len(slide.shapes):
            raise DataError(slide_path, f"has no level {options.level}", f"it has {len(slide.shapes)}")
        level = options.level if options.level is not None else slide.level_for(options.mpp)
        shape, factor = slide.shapes[level], slide.downsamples[level]
        opened = time.perf_counter()
        picture, unread = thumbnail(slide, progress=lambda share: progress(share / 2))
        found = find_tissue(picture, mode="hs" if options.tissue == "all" else options.tissue)
        # What cannot be read may be tissue: its patches are to fail later, not to be left out without a word.
        mask = np.ones_like(found.mask) if options.tissue == "all" else found.mask | unread
        chosen = patches_with_tissue(mask, shape, DOWNSAMPLE / factor, patch=options.patch, least=options.least_tissue)
        with replacing(folder / f"{path.stem}.mask.png") as temporary:
            Image.fromarray(preview(found, chosen, options.patch * factor / DOWNSAMPLE)).save(temporary)
        if not chosen.any():
            raise NoTissue(slide_path, "no tissue was found", f"see {path.stem}.mask.png")
        masked = time.perf_counter()

        def meta(patches: int) -> StoreMeta:
            return StoreMeta(
                slide=str(slide_path.resolve()),
                slide_id=identity,
                slide_bytes=_size(slide_path),
                reader=slide.reader,
                level=level,
                downsample=factor,
                level_shape=shape,
                level0_shape=slide.shapes[0],
                mpp=None if slide.mpp is None else (slide.mpp[0] * factor, slide.mpp[1] * factor),
                patch=options.patch,
                context=options.context,
                group_size=options.patches_per_group,
                pixels=options.pixels,
                patches=patches,
                tissue={
                    "mode": options.tissue, "fraction": round(found.fraction, 6), "least": options.least_tissue,
                    "saturation": round(found.saturation, 6), "hue_centre": round(found.hue_centre, 6),
                    "hue_distance": round(found.hue_distance, 6), "value": round(found.value, 6),
                },
            )  # fmt: skip

        def written(done: int, total: int) -> None:
            progress(0.5 + done / total / 2)

        about = write_store(path, slide, chosen, meta, threads=K.threads(), progress=written)
        end = time.perf_counter()
    return path, about, {"open": opened - start, "tissue": masked - opened, "store": end - masked}


def _same(meta: StoreMeta, options: PrepareOptions) -> bool:
    level = options.level is None or options.level == meta.level
    mpp = options.mpp is None or meta.mpp is None or abs(sum(meta.mpp) / 2 / options.mpp - 1) <= 0.1
    return (
        level and mpp and meta.patch == options.patch and meta.context == options.context
        and meta.group_size == options.patches_per_group and meta.pixels == options.pixels
        and meta.tissue["mode"] == options.tissue and meta.tissue["least"] == options.least_tissue
    )  # fmt: skip


def _size(path: Path) -> int:
    files = path.glob("*.dcm") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def bytes_report(path: Path, meta: StoreMeta, patch_bytes: int) -> str:
    """One line: bytes of the store beside those of the slide and of S4's layout."""
    size = path.stat().st_size
    tiles = meta.patches * patch_bytes
    columns, rows = meta.level_shape[1], meta.level_shape[0]
    return (
        f"{meta.patches} patches in {meta.groups} groups, {rows}x{columns}: store {size / 1e6:.1f} MB ="
        f" {size / meta.slide_bytes:.2f}x the slide; as uncompressed overlapping tiles {tiles / 1e6:.1f} MB ="
        f" {tiles / meta.slide_bytes:.2f}x (S4: {S4_RATIO:.2f}x)"
    )
