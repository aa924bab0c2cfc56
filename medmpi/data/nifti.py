"""NIfTI volumes through nibabel (extra ``io``), as stacks of slices seen as a radiologist holds them up.

A volume is turned to RAS+ (the nearest axes), cut across ``axis``, and each slice drawn with the later of its two axes
upwards: axial slices (axis 2) have the front of the body at the top and the patient's left at the right.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_whole
from .errors import DataError, MissingPackage, guarded
from .medical import Header, MedicalImage

SUFFIXES = (".nii", ".nii.gz")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_LARGEST_BYTES = 4 << 30
_DEFLATE_RATIO = 1032
_SLACK = 1 << 20  # bytes that may follow the pixels
_ADVICE = "fetch it again, or take it out"


@dataclass(frozen=True)
class _Claims:
    """What the first bytes say."""

    shape: tuple[int, ...]
    bytes_in_all: int


def read_nifti_header(file: Path, axis: int = 2) -> Header:
    """Size and number of slices; the group is the volume itself: its slices stay together."""
    return guarded(file, "NIfTI", _ADVICE, lambda: _header(file, axis))


def read_nifti(file: Path, axis: int = 2) -> MedicalImage:
    """All slices across ``axis`` of the RAS+ volume: 0 sagittal, 1 coronal, 2 axial.

    Scaled volumes are float32, others keep their dtype. DataError for what cannot be used: truncated, damaged,
    absurdly large, of more than three axes, complex or RGB.
    """
    return guarded(file, "NIfTI", _ADVICE, lambda: _read(file, axis))


def _header(file: Path, axis: int) -> Header:
    sizes = _oriented_shape(file, _load(file, header_only=True))
    h, w = (sizes[a] for a in sorted({0, 1, 2} - {axis}, reverse=True))
    return Header((h, w), True, sizes[axis], stem(file), "nifti")


def _read(file: Path, axis: int) -> MedicalImage:
    canonical = _nibabel().as_closest_canonical(_load(file, header_only=False))
    data = _values(file, canonical)
    zooms = [float(z) for z in canonical.header.get_zooms()[:3]]
    column_axis, row_axis = sorted({0, 1, 2} - {axis})
    slices = to_slices(data, axis)
    # From (column, row, slice) to the volume's indices: rows count downwards.
    index = np.zeros((4, 4))
    index[column_axis, 0], index[row_axis, 1], index[axis, 2], index[3, 3] = 1, -1, 1, 1
    index[row_axis, 3] = data.shape[row_axis] - 1
    return MedicalImage(
        path=str(file),
        pixels=slices[..., None],
        format="nifti",
        bits=8 if data.dtype == np.uint8 else 0,
        spacing=(zooms[row_axis], zooms[column_axis]),
        affine=canonical.affine @ index,
        group=stem(file),
    )


def to_slices(data: NDArray[Any], axis: int) -> NDArray[Any]:
    """A RAS+ volume (i, j, k) as slices (n, h, w)."""
    return np.moveaxis(data, axis, 0).transpose(0, 2, 1)[:, ::-1]


def from_slices(slices: NDArray[Any], axis: int) -> NDArray[Any]:
    """The inverse of ``to_slices``."""
    return np.moveaxis(slices[:, ::-1].transpose(0, 2, 1), 0, axis)


def write_labels(target: Path, slices: NDArray[np.uint8], *, like: Path, axis: int = 2) -> None:
    """A label volume of the orientation, affine and units of the volume ``like``, from slices (n, h, w) of it.

    Written under a temporary name, synced and renamed. ValueError where the sizes do not fit.
    """
    nibabel = _nibabel()
    source = guarded(like, "NIfTI", _ADVICE, lambda: _load(like, header_only=True))
    orientation = nibabel.io_orientation(source.affine)
    canonical = from_slices(slices, axis)
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), orientation)
    data = nibabel.orientations.apply_orientation(canonical, back)
    shape = tuple(source.shape)
    if data.shape != _three(like, shape):
        raise ValueError(f"write_labels: slices make a volume {data.shape}, {like} is {shape}")
    data = data.reshape(shape[:3])  # a single slice may come without its third axis
    header = source.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(data.shape)
    header.set_slope_inter(1.0, 0.0)
    _write_whole(target, type(source)(np.ascontiguousarray(data), None, header=header).to_bytes())


def write_volume(
    target: Path,
    slices: NDArray[np.uint8],
    affine: NDArray[np.float64] | None,
    spacing: tuple[float, float] | None = None,
) -> None:
    """Slices (n, h, w) of an image that is no NIfTI as a volume (column, row, slice) of its ``affine`` to RAS+ mm.

    Where the image has no place in space, a pixel's ``spacing`` (row, column) in mm alone is kept.
    """
    if affine is None:
        row, column = spacing or (1.0, 1.0)
        affine = np.diag([-column, -row, 1.0, 1.0])
    _write_whole(target, _nibabel().Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine).to_bytes())


def _write_whole(target: Path, content: bytes) -> None:
    if target.name.endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    write_whole(target, content)


def stem(file: Path) -> str:
    """The name without .nii or .nii.gz."""
    name = file.name
    for suffix in (".nii.gz", ".nii"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


@cache
def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise MissingPackage("NIfTI", "reading it needs nibabel", "pip install 'medmpi[io]'") from None
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it repairs in silence is checked here
    warnings.filterwarnings("ignore", module=r"nibabel\b")
    return nibabel


def _load(file: Path, *, header_only: bool) -> Any:
    """nibabel's image over the bytes of the file, all of them read and their checksum compared unless header_only."""
    nibabel = _nibabel()
    size = file.stat().st_size
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as opened:
            head = opened.read(540)
            claims, kind = _claims(file, head)
            most = size * _DEFLATE_RATIO if packed else size
            if claims.bytes_in_all > min(most, _LARGEST_BYTES):
                there = (
                    f"at most {most:,} are in it" if most < _LARGEST_BYTES else f"at most {_LARGEST_BYTES:,} are read"
                )
                times = "x".join(map(str, claims.shape))
                raise DataError(file, f"it claims {times} voxels, {claims.bytes_in_all:,} bytes, {there}", _ADVICE)
            header = getattr(nibabel, kind + "Header").from_fileobj(
                io.BytesIO(head[: 348 if kind == "Nifti1" else 540]), check=False
            )
            _check_affine(file, header.get_best_affine())
            if header_only:
                data = np.broadcast_to(np.zeros((), np.uint8), claims.shape)
                image = getattr(nibabel, kind + "Image")(data, header.get_best_affine(), header)
                image.header.set_slope_inter(1, 0)
                return image
            content = head + opened.read(claims.bytes_in_all + _SLACK - len(head))
            if opened.read(1):
                raise DataError(file, f"it holds more than the {claims.bytes_in_all:,} bytes that it claims", _ADVICE)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(file, f"its compressed part is truncated or damaged ({error})", _ADVICE) from None
    if len(content) < claims.bytes_in_all:
        raise DataError(file, f"it is truncated: {len(content)} of {claims.bytes_in_all} bytes are there", _ADVICE)
    return getattr(nibabel, kind + "Image").from_bytes(content)


def _check_affine(file: Path, found: Any) -> None:
    """It must lead from voxels to places and back."""
    affine = np.asarray(found, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(file, "its affine is not finite or has no inverse", "correct its sform or qform")


def _claims(file: Path, head: bytes) -> tuple[_Claims, str]:
    """Shape and size from the header's fixed places (nifti1.h, nifti2.h), before any library allocates."""
    if len(head) < 348:
        raise DataError(file, f"it has {len(head)} bytes, less than a NIfTI header", _ADVICE)
    for order in "<>":
        length = struct.unpack(order + "i", head[:4])[0]
        if length == 348 and head[344:348] in (b"n+1\0", b"ni1\0"):
            dims, (offset,) = struct.unpack(order + "8h", head[40:56]), struct.unpack(order + "f", head[108:112])
            datatype, bits = struct.unpack(order + "2h", head[70:74])
            kind, magic = "Nifti1", head[344:347]
        elif length == 540 and head[4:7] in (b"n+2", b"ni2") and len(head) == 540:
            dims, (offset,) = struct.unpack(order + "8q", head[16:80]), struct.unpack(order + "q", head[168:176])
            datatype, bits = struct.unpack(order + "2h", head[12:16])
            kind, magic = "Nifti2", head[4:7]
        else:
            continue
        if magic.startswith(b"ni"):
            raise DataError(file, "its pixels are in a file of their own (.hdr and .img)", "convert it to .nii")
        if not 1 <= dims[0] <= 7 or any(d < 1 for d in dims[1 : dims[0] + 1]):
            raise DataError(file, f"its dimensions are {list(dims)}", _ADVICE)
        if datatype in (32, 128, 1536, 1792, 2048, 2304):
            raise DataError(file, f"its voxels are of NIfTI type {datatype} (complex, RGB or long)", "convert it")
        if not 0 <= bits <= 128 or not np.isfinite(offset) or not 0 <= offset <= 1 << 30:
            raise DataError(file, f"its header is damaged ({bits} bits a voxel, pixels at byte {offset})", _ADVICE)
        shape = tuple(int(d) for d in dims[1 : dims[0] + 1])
        count = 1
        for d in shape:
            count *= d
        return _Claims(shape, int(offset) + count * bits // 8), kind
    raise DataError(file, "it is not NIfTI", "convert it, or take it out")


def _oriented_shape(file: Path, image: Any) -> tuple[int, int, int]:
    """The volume's shape when turned to RAS+."""
    nibabel = _nibabel()
    shape = _three(file, tuple(image.shape))
    orientation = nibabel.io_orientation(image.affine)
    sizes = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        sizes[int(target)] = shape[axis]
    return sizes[0], sizes[1], sizes[2]


def _three(file: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) > 3 and any(d != 1 for d in shape[3:]):
        raise DataError(file, f"it is {len(shape)}-dimensional ({'x'.join(map(str, shape))})", "expected one volume")
    three = (*shape, 1, 1)[:3]
    return three[0], three[1], three[2]


def _values(file: Path, image: Any) -> NDArray[Any]:
    shape = _three(file, tuple(image.shape))
    values = np.asarray(image.dataobj).reshape(shape)
    if values.dtype.kind == "f" and values.dtype != np.float32:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return values
