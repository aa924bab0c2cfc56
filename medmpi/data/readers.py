"""Any image file to pixels: the format is found from the file's first bytes, then from its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import array_file, nifti, picture
from .dicom import read_dicom, read_dicom_header
from .errors import DataError
from .medical import Header, MedicalImage

SUFFIXES = (*picture.SUFFIXES, ".dcm", ".dicom", ".ima", *nifti.SUFFIXES, *array_file.SUFFIXES)
"""Names that are taken for images when a folder is searched; files without a suffix are when they begin as one."""
_BEGINNINGS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")  # PNG, JPEG, TIFF


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_image(file: Path) -> bool:
    """By name; without a suffix, by its first bytes (archives name DICOM files by numbers or UIDs)."""
    if file.name.startswith(".") or file.name == "DICOMDIR":
        return False
    if is_image_name(file.name):
        return True
    if file.suffix and not file.suffix[1:].isdigit():
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(132)
            return head[128:] == b"DICM" or head.startswith(_BEGINNINGS)
    except OSError:
        return False


def name_of(file: Path) -> str:
    """The file's name without the suffix of its format: 1.2.3 stays whole, x.nii.gz becomes x."""
    lower = file.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return file.name[: -len(suffix)]
    return file.name


def read_header(file: Path, *, axis: int = 2) -> Header:
    """Size, number of frames, grey or colour and patient, without decoding the pixels. DataError names the file."""
    kind = _format(file)
    if kind == "dicom":
        return read_dicom_header(file)
    if kind == "array":
        return array_file.read_array_header(file)
    return nifti.read_nifti_header(file, axis) if kind == "nifti" else picture.read_picture_header(file)


def read_image(file: Path, *, axis: int = 2) -> MedicalImage:
    """All frames of a DICOM, NIfTI, PNG, JPEG, TIFF, BMP, PGM, npy, npz or HDF5 file. DataError names what is wrong."""
    kind = _format(file)
    if kind == "dicom":
        return read_dicom(file)
    if kind == "array":
        return array_file.read_array_file(file)
    return nifti.read_nifti(file, axis) if kind == "nifti" else picture.read_picture(file)


def read_mask(file: Path, *, axis: int = 2) -> NDArray[np.int64]:
    """The numbers of a mask, int64 (frames, h, w); colours and fractions are refused."""
    kind = _format(file)
    if kind == "picture":
        return picture.read_picture_mask(file)[None]
    image = array_file.read_array_mask(file) if kind == "array" else read_image(file, axis=axis)
    if not image.grey:
        raise DataError(file, "a mask in colours", "expected grey levels")
    values: NDArray[Any] = image.pixels[..., 0]
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise DataError(file, "a mask with fractions or NaN", "expected whole numbers")
    return values.astype(np.int64)


def _format(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            head = opened.read(132)
    except FileNotFoundError:
        raise DataError(file, "no such file", "check the path") from None
    except OSError as error:
        raise DataError(file, error.strerror or error, "check that it can be read") from None
    if head[128:] == b"DICM":
        return "dicom"
    name = file.name.lower()
    if name.endswith(nifti.SUFFIXES):
        return "nifti"
    if name.endswith((".dcm", ".dicom", ".ima")) and head[:2] in (b"\x02\0", b"\x08\0"):
        return "dicom"  # without the preamble of Part 10
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "picture" if head.startswith(_BEGINNINGS) else "dicom"
    return "array" if name.endswith(array_file.SUFFIXES) else "picture"
