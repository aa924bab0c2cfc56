"""DICOM files through pydicom and its decoders (extra ``io``).

Nothing that a header claims is believed: sizes are held against limits and against the bytes that are there before
anything is allocated, compressed frames are checked for being whole (codecs are not that careful), and are decoded in
another process (``decoder``).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import codestream, decoder
from .dicom_native import read_native, syntax_of
from .errors import DataError, MissingPackage, guarded
from .medical import LARGEST_PIXELS, Header, MedicalImage

_LARGEST_BYTES = 2 << 30  # of all frames, decoded
_LARGEST_INFLATED = 256 << 20
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_UNDEFINED = 0xFFFFFFFF
_ADVICE = "fetch it again, or take it out"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")


@dataclass(frozen=True)
class _Found:
    """A header that has been checked, and where the pixels lie in the file."""

    dataset: Any
    syntax: str
    compressed: bool
    frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    pixels_at: int
    pixels_length: int
    whole_numbers: bool


def read_dicom_header(file: Path) -> Header:
    """Size, frames and patient; the pixels are not looked at."""
    return guarded(file, "DICOM", _ADVICE, lambda: _header(file))


def read_dicom(file: Path) -> MedicalImage:
    """All frames, after the modality transformation.

    DataError names the file for whatever is wrong: no DICOM, no pixels, absurd sizes, truncated, not decodable.
    """
    return guarded(file, "DICOM", _ADVICE, lambda: _read(file))


def decode_here(path: str) -> NDArray[Any]:
    """pydicom's pixels of a file, in this process."""
    pydicom = _pydicom()
    dataset = pydicom.dcmread(path, force=True)
    # Pillow's libjpeg is the most tried of all JPEG decoders; it does not know 12 bits.
    plugin = "pillow" if str(dataset.file_meta.TransferSyntaxUID) == _JPEG_BASELINE else ""
    dataset.pixel_array_options(decoding_plugin=plugin)
    pixels: NDArray[Any] = dataset.pixel_array
    return pixels


@cache
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingPackage("DICOM", "reading it needs pydicom", "pip install 'medmpi[io]'") from None
    # What it warns of either does not matter here or ends in an error below.
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _header(file: Path) -> Header:
    found = _read_header(file)
    grey = found.photometric in _GREY
    return Header((found.rows, found.columns), grey, found.frames, _patient(found.dataset), "dicom")


def _patient(dataset: Any) -> str | None:
    return str(dataset.get("PatientID", "") or "").strip() or None


def _read_header(file: Path) -> _Found:
    pydicom = _pydicom()
    size = file.stat().st_size
    if size < 8:
        raise DataError(file, f"it has {size} bytes, not DICOM", _ADVICE)
    with file.open("rb") as opened:
        head = opened.read(4096)
        if head[128:132] != b"DICM" and head[:2] not in (b"\x02\0", b"\x08\0"):
            raise DataError(file, "it is not DICOM (no DICM at byte 128)", "convert it, or take it out")
        opened.seek(0)
        inflated = _check_deflated(pydicom, file, opened, head)
        opened.seek(0)
        dataset = pydicom.dcmread(opened, stop_before_pixels=True, force=True)
        at = opened.tell()
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", "") or "")
        if not syntax:
            if head[128:132] == b"DICM":
                raise DataError(file, "its transfer syntax is missing", _ADVICE)
            syntax = "1.2.840.10008.1.2"
        uid = pydicom.uid.UID(syntax)
        if not uid.is_transfer_syntax or (uid.is_private and not uid.is_encapsulated):
            raise DataError(file, f"its transfer syntax {syntax} is unknown", "convert it to a standard one")
        rows, columns = (_whole(file, dataset, n, 1, 65535) for n in ("Rows", "Columns"))
        frames = _whole(file, dataset, "NumberOfFrames", 1, 1 << 24, missing=1)
        samples = _whole(file, dataset, "SamplesPerPixel", 1, 4, missing=1)
        allocated = _whole(file, dataset, "BitsAllocated", 1, 64)
        photometric = str(dataset.get("PhotometricInterpretation", "") or "").strip()
        _check_sizes(file, rows, columns, frames, samples, allocated, photometric)
        if inflated is not None:
            start, length, compressed, whole = 0, inflated, False, False
        else:
            start, length, compressed, whole = _pixel_element(file, opened, at, size, uid)
    found = _Found(
        dataset, syntax, compressed, frames, rows, columns, samples, photometric, start, length, whole
    )  # fmt: skip
    if not compressed:
        needed = _native_bytes(rows, columns, frames, samples, allocated, photometric)
        if length < needed:
            raise DataError(file, f"it is truncated: {length} of {needed} bytes of pixels are there", _ADVICE)
    return found


def _whole(file: Path, dataset: Any, name: str, low: int, high: int, missing: int | None = None) -> int:
    try:
        value = dataset.get(name)
        if value is None or value == "":
            if missing is not None:
                return missing
            raise DataError(file, f"its {name} is missing: it holds no image", "take it out")
        number = int(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(file, f"its {name} cannot be read ({error})", _ADVICE) from None
    if not low <= number <= high:
        raise DataError(file, f"its {name} is {number}, expected {low}..{high}", _ADVICE)
    return number


def _check_sizes(
    file: Path, rows: int, columns: int, frames: int, samples: int, allocated: int, photometric: str
) -> None:
    if allocated not in (1, 8, 16, 32, 64):
        raise DataError(file, f"its BitsAllocated is {allocated}, expected 1, 8, 16, 32 or 64", _ADVICE)
    expected = {1: (*_GREY, "PALETTE COLOR"), 3: _COLOUR}.get(samples, ())
    if photometric not in expected:
        raise DataError(file, f"it has {samples} samples a pixel of {photometric or 'no photometry'}", "convert it")
    total = rows * columns * frames * samples * max(allocated, 8) // 8
    if rows * columns > LARGEST_PIXELS:
        raise DataError(file, f"it claims {rows}x{columns} pixels", f"at most {LARGEST_PIXELS:,} are read: cut it")
    if total > _LARGEST_BYTES:
        raise DataError(file, f"its {frames} frames claim {total:,} bytes", f"at most {_LARGEST_BYTES:,}: split it")


def _check_deflated(pydicom: Any, file: Path, opened: BinaryIO, head: bytes) -> int | None:
    """Bytes that a deflated file unpacks to (an upper bound of its pixels), counted without keeping them."""
    if head[128:132] == b"DICM":
        syntax = syntax_of(head)
        if syntax is not None and syntax != _DEFLATED:
            return None
    try:
        meta = pydicom.filereader.read_file_meta_info(str(file))
    except Exception:  # not DICOM, or no meta information: the reader proper will tell
        return None
    if str(meta.get("TransferSyntaxUID", "")) != _DEFLATED:
        return None
    opened.seek(0)
    pydicom.filereader.read_preamble(opened, False)
    pydicom.filereader._read_file_meta_info(opened)
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for chunk in iter(lambda: opened.read(1 << 14), b""):
        while chunk:
            out = inflate.decompress(chunk, 1 << 20)
            total, chunk = total + len(out), inflate.unconsumed_tail
            if total > _LARGEST_INFLATED:
                raise DataError(file, f"it unpacks to more than {_LARGEST_INFLATED:,} bytes", "do not use it")
    if not inflate.eof:
        raise DataError(file, "its deflated part is truncated", _ADVICE)
    return total


def _pixel_element(file: Path, opened: BinaryIO, at: int, size: int, uid: Any) -> tuple[int, int, bool, bool]:
    """Where the value of the pixel element begins, its length, whether it is of fragments, and of whole numbers."""
    opened.seek(at)
    head = opened.read(12)
    order = "<" if uid.is_little_endian else ">"
    if len(head) < 8:
        raise DataError(file, "it ends before its pixels: truncated, or no image", _ADVICE)
    group, element = struct.unpack(order + "HH", head[:4])
    if (group, element) not in ((0x7FE0, 0x10), (0x7FE0, 8), (0x7FE0, 9)):
        raise DataError(file, "it has no pixel data", "take it out")
    if uid.is_implicit_VR:
        start, length = at + 8, struct.unpack(order + "L", head[4:8])[0]
    else:
        start, length = at + 12, struct.unpack(order + "L", head[8:12])[0] if len(head) == 12 else 0
    if uid.is_encapsulated:
        if length != _UNDEFINED:
            raise DataError(file, "its compressed pixels have a fixed length", "convert it again")
        return start, size - start, True, True
    if length == _UNDEFINED:
        raise DataError(file, "its pixels have no length although they are not compressed", _ADVICE)
    if start + length > size:
        raise DataError(file, f"it is truncated: {size - start} of {length} bytes of pixels are there", _ADVICE)
    return start, length, False, element == 0x10


def _native_bytes(rows: int, columns: int, frames: int, samples: int, allocated: int, photometric: str) -> int:
    values = rows * columns * frames * samples
    if allocated == 1:
        return -(-values // 8)
    if photometric == "YBR_FULL_422":
        values = values // 3 * 2
    return values * allocated // 8


def _check_fragments(file: Path, found: _Found) -> None:
    """Every frame is there and whole, and is of the size that the header says."""
    pydicom = _pydicom()
    with file.open("rb") as opened:
        opened.seek(found.pixels_at)
        data = opened.read(found.pixels_length)
    try:
        _walk_items(data)
        offsets = None
        if "ExtendedOffsetTable" in found.dataset:
            offsets = (found.dataset.ExtendedOffsetTable, found.dataset.ExtendedOffsetTableLengths)
        frames = list(pydicom.encaps.generate_frames(data, number_of_frames=found.frames, extended_offsets=offsets))
        if len(frames) != found.frames:
            raise ValueError(f"{len(frames)} of {found.frames} frames are there")
        for frame in frames:
            if found.syntax == _RLE:
                codestream.check_rle(frame)
                continue
            stream = codestream.inspect(frame)
            if (stream.rows, stream.columns) != (found.rows, found.columns):
                inside = f"{stream.rows}x{stream.columns}"
                raise ValueError(f"the compressed pixels are {inside}, the header says {found.rows}x{found.columns}")
            if stream.components != found.samples:
                raise ValueError(f"the compressed pixels have {stream.components} components, not {found.samples}")
    except (ValueError, struct.error, EOFError, IndexError) as error:
        raise DataError(file, error, _ADVICE) from None


def _walk_items(data: bytes) -> None:
    """From item to item up to the delimiter (PS3.5 A.4)."""
    at = 0
    while at + 8 <= len(data):
        tag, length = data[at : at + 4], struct.unpack("<L", data[at + 4 : at + 8])[0]
        if tag == b"\xfe\xff\xdd\xe0":
            return
        if tag != b"\xfe\xff\x00\xe0":
            raise ValueError(f"no fragment begins at byte {at} of the compressed pixels: damaged")
        at += 8 + length
    raise ValueError("it is truncated: the end of its compressed pixels is missing")


def _read(file: Path) -> MedicalImage:
    found = _read_header(file)
    if found.compressed:
        _check_fragments(file, found)
        pixels = decoder.decode(str(file))
    else:
        plain = _plain(file, found)
        pixels = decode_here(str(file)) if plain is None else plain
    pixels = np.asarray(pixels).reshape(found.frames, found.rows, found.columns, -1)
    if pixels.dtype.byteorder == ">":
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    dataset = found.dataset
    if found.photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = np.asarray(apply_color_lut(pixels[..., 0], dataset))
        bits = 8 * pixels.dtype.itemsize
    else:
        bits = _whole(file, dataset, "BitsStored", 1, 64, missing=8 * pixels.dtype.itemsize)
    stored = pixels
    if found.photometric in _GREY:
        pixels = _modality(dataset, pixels)
    window, table = _interest(dataset, grey=found.photometric in _GREY)
    spacing, affine = _geometry(dataset)
    return MedicalImage(
        path=str(file),
        pixels=pixels,
        format="dicom",
        bits=bits if pixels is stored and pixels.dtype.kind != "f" else 0,
        limits=None if pixels is stored or stored.dtype.kind == "f" else _rescaled_limits(dataset, stored, bits),
        spacing=spacing,
        affine=affine,
        window=window,
        table=table,
        inverted=found.photometric == "MONOCHROME1",
        group=_patient(dataset),
        tags={n: str(dataset.get(n, "")) for n in ("Modality", "SOPInstanceUID", "SeriesInstanceUID")},
    )


def _plain(file: Path, found: _Found) -> NDArray[Any] | None:
    """Grey pixels of 8 or 16 bits as they lie in the file; None for all others."""
    dataset = found.dataset
    allocated, stored, high, sign = (
        _whole(file, dataset, name, 0, 64, missing=-1)
        for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    )
    if found.photometric not in _GREY or found.syntax not in _NATIVE or allocated not in (8, 16):
        return None
    little = found.syntax != _BIG_ENDIAN
    if not little and allocated == 8:  # in words, whose bytes are swapped
        return None
    if not 1 <= stored <= allocated or high not in (-1, stored - 1) or sign not in (0, 1) or not found.whole_numbers:
        return None
    shape = found.frames, found.rows, found.columns
    return read_native(
        file, found.pixels_at, shape, allocated=allocated, stored=stored, signed=sign == 1, little=little
    )


def _modality(dataset: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Stored to physical values (PS3.3 C.11.1), in the smallest dtype that holds them exactly, else float32."""
    if "ModalityLUTSequence" in dataset:
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(pixels, dataset))
    slope, intercept = (_number(dataset, n, d) for n, d in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    if (slope, intercept) == (1.0, 0.0) or slope == 0 or pixels.dtype.kind == "f":
        return pixels if (slope, intercept) == (1.0, 0.0) else pixels.astype(np.float32) * slope + intercept
    if slope.is_integer() and intercept.is_integer() and pixels.size:
        ends = [int(v) * int(slope) + int(intercept) for v in (pixels.min(), pixels.max())]
        for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                return (pixels.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _rescaled_limits(dataset: Any, stored: NDArray[Any], bits: int) -> tuple[float, float] | None:
    """Physical values of the smallest and the largest stored value; None behind a table."""
    if "ModalityLUTSequence" in dataset:
        return None
    slope, intercept = (_number(dataset, n, d) for n, d in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    ends = low * slope + intercept, high * slope + intercept
    return min(ends), max(ends)


def _number(dataset: Any, name: str, missing: float) -> float:
    value = dataset.get(name)
    if value is None or value == "":
        return missing
    number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    return number if np.isfinite(number) else missing


def _interest(
    dataset: Any, *, grey: bool
) -> tuple[tuple[float, float] | None, tuple[float, NDArray[np.float64]] | None]:
    """The file's own window or table: the first one, as viewers show it."""
    if not grey:
        return None, None
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        item = sequence[0]
        descriptor = [int(v) for v in item.LUTDescriptor]
        data = item.LUTData
        values = np.frombuffer(data, np.uint16) if isinstance(data, bytes) else np.asarray(data, dtype=np.float64)
        values = values[: descriptor[0] or 65536].astype(np.float64)
        if len(values):
            return None, (float(descriptor[1]), values / (2 ** min(max(descriptor[2], 1), 16) - 1))
    centre, width = (_number(dataset, n, float("nan")) for n in ("WindowCenter", "WindowWidth"))
    if np.isfinite(centre) and np.isfinite(width) and width > 0:
        return (centre, width), None
    return None, None


def _geometry(dataset: Any) -> tuple[tuple[float, float] | None, NDArray[np.float64] | None]:
    """Pixel spacing in mm and the map to RAS+ from the position and orientation of the plane (PS3.3 C.7.6.2)."""
    shared = dataset
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        sequence = dataset.get(name)
        if "PixelSpacing" not in shared and sequence and sequence[0].get("PixelMeasuresSequence"):
            shared = sequence[0].PixelMeasuresSequence[0]
    spacing = None
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = shared.get(name)
        if value is not None and len(value) == 2 and all(float(v) > 0 for v in value):
            spacing = (float(value[0]), float(value[1]))
            break
    try:
        position = np.array([float(v) for v in dataset.ImagePositionPatient])
        along = np.array([float(v) for v in dataset.ImageOrientationPatient]).reshape(2, 3)
    except (AttributeError, TypeError, ValueError):
        return spacing, None
    if spacing is None or position.shape != (3,):
        return spacing, None
    thickness = _number(shared, "SpacingBetweenSlices", _number(shared, "SliceThickness", 1.0)) or 1.0
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along[0] * spacing[1], along[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(along[0], along[1]) * thickness, position
    return spacing, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM is LPS+
