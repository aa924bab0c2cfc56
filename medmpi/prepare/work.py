"""One unit of work: files are read, prepared and written; whatever is wrong with one is noted and costs that one."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medmpi.data import DataError, read_image, read_mask
from medmpi.data.errors import MissingPackage
from medmpi.data.medical import MedicalImage
from medmpi.files import write_whole
from medmpi.prepare.options import Options
from medmpi.prepare.plan import Item, Unit
from medmpi.prepare.preview import write_preview
from medmpi.prepare.steps import Moments, Prepared, fitted, prepare_frame

Record = dict[str, Any]
RESULTS = "results"


class Worker:
    """Does units. ``known`` are records of earlier runs: a unit whose results are still there is not done again."""

    def __init__(
        self,
        options: Options,
        classes: tuple[str, ...],
        known: dict[str, Record],
        statistics: tuple[float, float] | None = None,
        *,
        only_statistics: bool = False,
    ) -> None:
        self.options, self.classes, self.known, self.statistics = options, classes, known, statistics
        self.only_statistics = only_statistics
        self.out = Path(options.out).expanduser()

    def __call__(self, unit: Unit) -> Record:
        """The unit's record, as JSON: key, inputs, outputs with their hashes, bad files, moments, seconds."""
        old = self.known.get(unit.key)
        if old is not None and self._still_there(unit, old):
            return {**old, "kept": True}
        start = time.perf_counter()
        record: Record = {"key": unit.key, "inputs": [], "outputs": [], "bad": [], "moments": [0, 0.0, 0.0]}
        if self.only_statistics:
            for _ in self._prepared(unit, record):
                pass
        elif unit.target is None:
            self._pictures(unit, record)
        else:
            self._shard(unit, record)
        record["seconds"] = round(time.perf_counter() - start, 4)
        return record

    def _still_there(self, unit: Unit, record: Record) -> bool:
        now = [(str(item.file), *_state(item.file)) for item in unit.items]
        if record["bad"] or now != [(i["file"], *i["state"]) for i in record["inputs"]]:
            return False  # what was bad may have been mended
        for output in record["outputs"]:
            path = self.out / output["file"]
            if not path.is_file() or _digest(path.read_bytes()) != output["sha256"]:
                return False
        return True

    def _prepared(self, unit: Unit, record: Record) -> Iterator[tuple[Item, MedicalImage, int, Prepared]]:
        """Each frame of each file; a file that cannot be used is noted."""
        for item in unit.items:
            state = _state(item.file)
            try:
                image = read_image(item.file)
                frames = [prepare_frame(image, f, self.options, self.statistics) for f in range(image.frames)]
            except MissingPackage:
                raise
            except DataError as error:
                record["bad"].append({"file": str(item.file), "error": str(error)})
                record["inputs"].append({"file": str(item.file), "state": state})
                continue
            record["inputs"].append({"file": str(item.file), "state": state, **_about(image, frames[0])})
            for frame, prepared in enumerate(frames):
                _add(record["moments"], prepared.moments)
                yield item, image, frame, prepared

    def _pictures(self, unit: Unit, record: Record) -> None:
        try:
            for item, image, frame, prepared in self._prepared(unit, record):
                name = item.name if image.frames == 1 else f"{item.name}_{frame:04}"
                if item.mask is not None:
                    self._mask(item, image, frame, prepared, name, record)
                content = _png(prepared.pixels, _spacing(image, prepared, self.options))
                self._write(f"{RESULTS}/{name}.png", content, record)
                if unit.preview and frame == 0:
                    self._preview(image, prepared, name)
        except DataError as error:  # its mask
            record["bad"].append({"file": str(unit.items[0].file), "error": str(error)})

    def _mask(self, item: Item, image: MedicalImage, frame: int, prepared: Prepared, name: str, record: Record) -> None:
        """The mask of an image goes the same way, by its nearest pixels."""
        assert item.mask is not None
        mask = read_mask(item.mask)
        if mask.shape != (image.frames, *image.image_size):
            raise DataError(item.mask, f"it is {mask.shape[1:]}, its image {image.image_size}", "make them equal")
        if mask.size and not 0 <= mask.min() <= mask.max() <= 65535:
            raise DataError(item.mask, f"its numbers reach {mask.max()}", "expected 0..65535")
        top, left, bottom, right = prepared.box
        plane = mask[frame, top:bottom, left:right, None].astype(np.uint16)
        if self.options.image_size is not None:
            plane = fitted(plane, self.options.image_size, self.options.fit, nearest=True)
        small = plane.astype(np.uint8) if mask.max(initial=0) < 256 else plane
        self._write(f"{RESULTS}/{_beside(name)}.png", _png(small, None), record)

    def _shard(self, unit: Unit, record: Record) -> None:
        """An HDF5 file of all frames, written under a temporary name; images go in one by one."""
        import h5py

        assert unit.target is not None
        target = self.out / unit.target
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        labels: list[int] = []
        names: list[str] = []
        groups: list[str] = []
        spacings: list[tuple[float, float]] = []
        images: Any = None
        try:
            with h5py.File(temporary, "w") as file:
                for item, image, frame, prepared in self._prepared(unit, record):
                    pixels = prepared.pixels[..., 0] if prepared.pixels.shape[2] == 1 else prepared.pixels
                    if images is None:
                        images = file.create_dataset(
                            "images", (0, *pixels.shape), pixels.dtype, maxshape=(None, *pixels.shape),
                            chunks=(1, *pixels.shape), fletcher32=True, compression="lzf",
                        )  # fmt: skip
                    if pixels.shape != images.shape[1:] or pixels.dtype != images.dtype:
                        sizes = f"it is {pixels.dtype} {pixels.shape}, the shard has {images.dtype} {images.shape[1:]}"
                        record["bad"].append(
                            {"file": str(item.file), "error": f"{item.file}: {sizes}; give --image-size"}
                        )
                        continue
                    images.resize(len(names) + 1, axis=0)
                    images[len(names)] = pixels
                    names.append(item.name if image.frames == 1 else f"{item.name}_{frame:04}")
                    spacings.append(_spacing(image, prepared, self.options) or (np.nan, np.nan))
                    groups.append(image.group or str(item.file))
                    labels.append(self.classes.index(item.label) if item.label in self.classes else 0)
                    if unit.preview and len(names) == 1:
                        self._preview(image, prepared, names[0])
                if names:
                    # Strings of fixed length: a damaged heap of others can hang the library.
                    file["names"], file["groups"] = (np.array([t.encode() for t in ts]) for ts in (names, groups))
                    file["spacing_mm"] = np.array(spacings)
                    if self.classes:
                        file["labels"] = np.array(labels, np.int64)
                        file.attrs["classes"] = list(self.classes)
                    file.attrs["settings"] = self.options.digest()
            if names:
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
                content = temporary.read_bytes()
                os.replace(temporary, target)
                shape = [int(n) for n in (len(names), *images_shape(content))]
                output = {"file": unit.target, "sha256": _digest(content), "bytes": len(content), "shape": shape}
                record["outputs"].append(output)
        finally:
            temporary.unlink(missing_ok=True)

    def _preview(self, image: MedicalImage, prepared: Prepared, name: str) -> None:
        write_preview(self.out / "previews" / f"{name.replace('/', '__')}.png", image, prepared.pixels)

    def _write(self, name: str, content: bytes, record: Record) -> None:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        record["outputs"].append({"file": name, "sha256": _digest(content), "bytes": len(content)})


def _beside(name: str) -> str:
    """train/images/x to train/masks/x."""
    parts = name.split("/")
    at = len(parts) - 1 - parts[::-1].index("images")
    return "/".join([*parts[:at], "masks", *parts[at + 1 :]])


def images_shape(content: bytes) -> tuple[int, ...]:
    """The shape of one image of a shard."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        return tuple(file["images"].shape[1:])


def _png(pixels: Any, spacing: tuple[float, float] | None) -> bytes:
    """Grey of 8 or 16 bits or RGB; the pixel spacing as the picture's resolution."""
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    extra = {} if spacing is None else {"dpi": (25.4 / spacing[1], 25.4 / spacing[0])}
    picture.save(out, "PNG", compress_level=3, **extra)
    return out.getvalue()


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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _add(total: list[Any], moments: Moments) -> None:
    for i, value in enumerate(moments):
        total[i] += value
