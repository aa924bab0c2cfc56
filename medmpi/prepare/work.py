"""One unit of work: files are read, prepared and written; whatever is wrong with one is noted and costs that one."""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.behind import WriteBehind
from medmpi.data import DataError, read_image, read_mask
from medmpi.data.errors import MissingPackage
from medmpi.data.medical import MedicalImage
from medmpi.files import replacing
from medmpi.prepare.book import Book
from medmpi.prepare.options import Options
from medmpi.prepare.plan import Item, Unit
from medmpi.prepare.png import encode_png
from medmpi.prepare.preview import draw_preview
from medmpi.prepare.shard import Shard
from medmpi.prepare.steps import Moments, Prepared, fitted, prepare_frame

Record = dict[str, Any]
RESULTS = "results"


@dataclass(frozen=True)
class _Frame:
    """One frame of a file after all steps, with its mask (h, w), and the name of its result."""

    item: Item
    image: MedicalImage
    prepared: Prepared
    mask: NDArray[Any] | None
    name: str
    number: int


class Worker:
    """Does units. ``known`` are records of earlier runs: a unit whose results are still there is not done again."""

    def __init__(
        self,
        options: Options,
        classes: tuple[str, ...],
        book: Book,
        known: dict[str, Record],
        statistics: tuple[float, float] | None = None,
        *,
        only_statistics: bool = False,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.options, self.classes, self.known, self.statistics = options, classes, known, statistics
        self.only_statistics = only_statistics
        self.out = Path(options.out).expanduser()
        self._book, self._writer, self._stop = book, WriteBehind(), stop
        self._files: list[tuple[Path, bytes]] = []
        self._error: OSError | None = None

    def close(self) -> None:
        """Waits until all results are on disk and in the book; OSError if the disk does not take them."""
        try:
            self._writer.close()
            if self._error is not None:
                raise self._error
        finally:
            self._book.close()

    def __call__(self, unit: Unit) -> Record:
        """The unit's record, as JSON: key, inputs, outputs with their hashes, bad files, moments, seconds.

        Its files and its line in the book are still to be written by a thread when this returns.
        """
        old = self.known.get(unit.key)
        if old is not None and self._still_there(unit, old):
            return {**old, "kept": True}
        try:
            return self._done(unit)
        except OSError as error:  # no file is to blame: nothing more can be written
            self._error = error if error.errno else OSError(errno.EIO, str(error), str(self.out))
            self._stop()
            raise

    def _done(self, unit: Unit) -> Record:
        start = time.perf_counter()
        self._files = []
        record: Record = {"key": unit.key, "inputs": [], "outputs": [], "bad": [], "moments": [0, 0.0, 0.0]}
        if self.only_statistics:
            for _ in self._prepared(unit, record):
                pass
        elif unit.target is None:
            self._pictures(unit, record)
        else:
            self._shard(unit, record)
        record["seconds"] = round(time.perf_counter() - start, 4)
        files, self._files = self._files, []
        self._writer.put(files, lambda: self._book.add(record))
        return record

    def _still_there(self, unit: Unit, record: Record) -> bool:
        now = [(str(item.file), *_state(item.file)) for item in unit.items]
        if record["bad"] or now != [(i["file"], *i["state"]) for i in record["inputs"]]:
            return False  # what was bad may have been mended
        for output in record["outputs"]:
            path = self.out / output["file"]
            if not path.is_file() or _digest_of(path) != output["sha256"]:
                return False
        return True

    def _prepared(self, unit: Unit, record: Record) -> Iterator[_Frame]:
        """Each frame of each file; a file that cannot be used is noted."""
        for item in unit.items:
            state = _state(item.file)
            try:
                image = read_image(item.file)
                frames = [prepare_frame(image, f, self.options, self.statistics) for f in range(image.frames)]
                masks = self._masks(item, image, frames)
            except MissingPackage:
                raise
            except DataError as error:
                text = re.sub(r"\?(\w+)=", r"--\1 ", str(error))  # an option here, not part of a specification
                record["bad"].append({"file": str(item.file), "error": text})
                record["inputs"].append({"file": str(item.file), "state": state})
                continue
            record["inputs"].append({"file": str(item.file), "state": state, **_about(image, frames[0])})
            for number, prepared in enumerate(frames):
                if prepared.moments is not None:
                    _add(record["moments"], prepared.moments)
                name = item.name if image.frames == 1 else f"{item.name}_{number:04}"
                yield _Frame(item, image, prepared, None if masks is None else masks[number], name, number)

    def _masks(self, item: Item, image: MedicalImage, frames: list[Prepared]) -> list[NDArray[Any]] | None:
        """The masks (h, w) of an image's frames, gone the same way by their nearest pixels; None if it has none."""
        if item.mask is None or self.only_statistics:
            return None
        mask = read_mask(item.mask)
        if mask.shape != (image.frames, *image.image_size):
            raise DataError(item.mask, f"it is {mask.shape[1:]}, its image {image.image_size}", "make them equal")
        if not 0 <= mask.min() <= mask.max() <= 65535:
            outside = mask.min() if mask.min() < 0 else mask.max()
            raise DataError(item.mask, f"it holds the number {outside}", "expected 0..65535")
        if self.options.masks == "binary":
            mask = (mask > 0).astype(np.int64)
        dtype = np.uint8 if mask.max() < 256 else np.uint16
        if self.options.format == "hdf5" and dtype == np.uint16:
            raise DataError(item.mask, f"it holds numbers up to {mask.max()}", "for instances give --masks binary")
        planes = []
        for plane, prepared in zip(mask, frames, strict=True):
            top, left, bottom, right = prepared.box
            cut = plane[top:bottom, left:right, None].astype(np.uint16)
            if self.options.image_size is not None:
                cut = fitted(cut, self.options.image_size, self.options.fit, nearest=True)
            planes.append(cut[..., 0].astype(dtype))
        return planes

    def _pictures(self, unit: Unit, record: Record) -> None:
        for frame in self._prepared(unit, record):
            if frame.mask is not None:
                self._write(f"{RESULTS}/{_beside(frame.name)}.png", encode_png(frame.mask[..., None]), record)
            content = encode_png(frame.prepared.pixels, _spacing(frame.image, frame.prepared, self.options))
            self._write(f"{RESULTS}/{frame.name}.png", content, record)
            if unit.preview and frame.number == 0:
                self._preview(frame)

    def _shard(self, unit: Unit, record: Record) -> None:
        """An HDF5 file of all frames."""
        import h5py

        assert unit.target is not None
        target = self.out / unit.target
        with replacing(target) as temporary:
            with h5py.File(temporary, "w") as file:
                shard = Shard(file, unit.split, self.classes)
                for frame in self._prepared(unit, record):
                    problem = shard.problem(frame.prepared.pixels)
                    if unit.masks and frame.mask is None:
                        problem = "it has no mask, others have"
                    if problem is not None:
                        record["bad"].append({"file": str(frame.item.file), "error": f"{frame.item.file}: {problem}"})
                        continue
                    group = frame.image.group or str(frame.item.file)
                    spacing = _spacing(frame.image, frame.prepared, self.options)
                    shard.add(
                        frame.prepared.pixels, frame.mask, name=frame.name, group=group, label=frame.item.label,
                        spacing=spacing,
                    )  # fmt: skip
                    if unit.preview and len(shard) == 1:
                        self._preview(frame)
                if len(shard):
                    shape = [int(n) for n in file[shard.prefix + "images"].shape]
                    shard.finish(self.options.digest())
            size, digest = temporary.stat().st_size, _digest_of(temporary)
        if len(shard):
            record["outputs"].append({"file": unit.target, "sha256": digest, "bytes": size, "shape": shape})
        else:
            target.unlink()

    def _preview(self, frame: _Frame) -> None:
        path = self.out / "previews" / f"{frame.name.replace('/', '__')}.png"
        self._files.append((path, draw_preview(frame.image, frame.prepared.pixels)))

    def _write(self, name: str, content: bytes, record: Record) -> None:
        self._files.append((self.out / name, content))
        record["outputs"].append({"file": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})


def _beside(name: str) -> str:
    """train/images/x to train/masks/x."""
    parts = name.split("/")
    at = len(parts) - 1 - parts[::-1].index("images")
    return "/".join([*parts[:at], "masks", *parts[at + 1 :]])


def _spacing(image: MedicalImage, prepared: Prepared, options: Options) -> tuple[float, float] | None:
    """Millimetres of a pixel of the result."""
    if image.spacing is None:
        return None
    top, left, bottom, right = prepared.box
    h, w = prepared.pixels.shape[:2]
    scale = (bottom - top) / h, (right - left) / w
    if options.fit == "pad" and options.image_size is not None:
        scale = max(scale), max(scale)
    return image.spacing[0] * scale[0], image.spacing[1] * scale[1]


def _about(image: MedicalImage, first: Prepared) -> Record:
    """What the manifest says of an input. No patient: the manifest may be shared."""
    return {
        "format": image.format,
        "frames": image.frames,
        "shape": list(image.pixels.shape[1:]),
        "dtype": str(image.pixels.dtype),
        "spacing_mm": None if image.spacing is None else list(image.spacing),
        "steps": first.steps,
    }


def _state(file: Path) -> tuple[int, int]:
    """Size and time of change: another one means another file."""
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(total: list[Any], moments: Moments) -> None:
    for i, value in enumerate(moments):
        total[i] += value
