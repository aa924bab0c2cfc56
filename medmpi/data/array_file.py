"""A file of arrays as an image: ``.npy``, ``.npz`` and HDF5 files that lie among pictures and DICOM.

The array is the only one, or the one called ``image`` or ``images`` (in files of masks ``mask``, ``masks``, ``label``
or ``labels``). (h, w) and (h, w, 1 or 3) are one frame, (n, h, w) and (n, h, w, 1 or 3) are frames.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, guarded
from .medical import LARGEST_PIXELS, Header, MedicalImage
from .npy_member import DEFLATE_RATIO, read_member_data, read_member_header

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_IMAGES, _MASKS = ("image", "images"), ("mask", "masks", "label", "labels")
_LARGEST_BYTES = 2 << 30
_ADVICE = "write it again, or take it out"


@dataclass(frozen=True)
class _Claim:
    """An array that has not been read: name, shape and dtype, and what reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def read_array_header(file: Path) -> Header:
    """Size and frames of the array; no pixel is read."""

    def action() -> Header:
        with _claimed(file, _IMAGES) as claim:
            n, h, w, c = _four(file, claim)
        return Header((h, w), c == 1, n, None, "array")

    return guarded(file, "arrays", _ADVICE, action)


def read_array_file(file: Path) -> MedicalImage:
    """The image array's frames, whole numbers as they are and fractions as float32. DataError for what is no image."""
    return guarded(file, "arrays", _ADVICE, lambda: _read(file, _IMAGES))


def read_array_mask(file: Path) -> MedicalImage:
    """The mask array's frames."""
    return guarded(file, "arrays", _ADVICE, lambda: _read(file, (*_MASKS, *_IMAGES)))


def _read(file: Path, names: tuple[str, ...]) -> MedicalImage:
    with _claimed(file, names) as claim:
        shape = _four(file, claim)
        data = claim.read().reshape(shape)
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
    data = np.ascontiguousarray(data, data.dtype.newbyteorder("="))
    bits = 8 * data.dtype.itemsize if data.dtype.kind in "iu" else 0
    return MedicalImage(str(file), data, "array", bits)


def _four(file: Path, claim: _Claim) -> tuple[int, int, int, int]:
    """The shape as (n, h, w, c), held against limits."""
    shape = claim.shape
    if claim.dtype.kind not in "biuf" or claim.dtype.itemsize > 8:
        raise DataError(file, f"{claim.name} is {claim.dtype}", "expected numbers")
    colour = len(shape) > 2 and shape[-1] in (1, 3)
    frames = (1, *shape) if len(shape) - colour == 2 else shape
    full = frames if colour else (*frames, 1)
    if len(full) != 4 or 0 in full:
        raise DataError(
            file, f"{claim.name} has shape {shape}", "expected (h, w) or (n, h, w), perhaps with 1 or 3 colours"
        )
    n, h, w, c = full
    if h * w > LARGEST_PIXELS or n * h * w * c * claim.dtype.itemsize > _LARGEST_BYTES:
        raise DataError(file, f"{claim.name} claims {shape} of {claim.dtype}", "cut it into smaller ones")
    return n, h, w, c


def _pick(file: Path, found: list[str], names: tuple[str, ...]) -> str:
    """Which of the arrays is meant."""
    for name in names:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    said = ", ".join(sorted(found)[:8]) or "no array"
    data_set = any(name.endswith("_images") for name in found)
    advice = "it is a data set of its own: give it as npz:FILE or hdf5:FILE" if data_set else f"name one {names[0]}"
    raise DataError(file, f"it holds {said}", advice)


@contextmanager
def _claimed(file: Path, names: tuple[str, ...]) -> Iterator[_Claim]:
    with file.open("rb") as opened:
        head = opened.read(8)
        opened.seek(0)
        if head.startswith(b"\x93NUMPY"):
            yield _of_member(file, "the array", opened, file.stat().st_size)
        elif head.startswith(b"PK"):
            with zipfile.ZipFile(opened) as archive:
                members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
                name = _pick(file, list(members), names)
                info = members[name]
                if info.file_size > DEFLATE_RATIO * (info.compress_size + 1):
                    claims = f"{name} claims {info.file_size} bytes from {info.compress_size}"
                    raise DataError(file, claims, "do not use it")
                with archive.open(info) as member:
                    yield _of_member(file, name, member, info.file_size)
        elif head == b"\x89HDF\r\n\x1a\n":
            yield from _of_hdf5(file, names)
        else:
            raise DataError(file, "it is no .npy, .npz or HDF5 file", _ADVICE)


def _of_member(file: Path, name: str, member: IO[bytes], size: int) -> _Claim:
    header = read_member_header(str(file), name, member, size)
    return _Claim(name, header[0], header[2], lambda: read_member_data(str(file), name, member, header))


def _of_hdf5(file: Path, names: tuple[str, ...]) -> Iterator[_Claim]:
    from .hdf5_set import checked_dataset, open_file

    state = file.stat()
    _checked(file, state.st_size, state.st_mtime_ns)
    with open_file(file) as opened:
        name = _pick(file, [str(n) for n in opened], names)
        found = checked_dataset(file, opened, name, kinds="biuf")
        yield _Claim(name, tuple(found.shape), found.dtype, lambda: np.asarray(found[()]))


@lru_cache(maxsize=1 << 16)
def _checked(file: Path, size: int, changed: int) -> None:
    """Read through once, in a process of its own."""
    from .hdf5_check import check_hdf5

    check_hdf5(file)
