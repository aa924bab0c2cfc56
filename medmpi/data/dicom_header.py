"""What a DICOM file claims, checked against limits and against the bytes that are there, before anything is decoded."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from . import codestream
from .dicom_native import syntax_of
from .errors import DataError, MissingPackage
from .medical import LARGEST_PIXELS

ADVICE = "fetch it again, or take it out"
GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_LARGEST_BYTES = 2 << 30  # of all frames, decoded
_LARGEST_INFLATED = 256 << 20
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Found:
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


@cache
def load_pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingPackage("DICOM", "reading it needs pydicom", "pip install 'medmpi[io]'") from None
    # What it warns of either does not matter here or ends in an error below.
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def read_found(file: Path) -> Found:
    pydicom = load_pydicom()
    size = file.stat().st_size
    if size < 8:
        raise DataError(file, f"it has {size} bytes, not DICOM", ADVICE)
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
                raise DataError(file, "its transfer syntax is missing", ADVICE)
            syntax = "1.2.840.10008.1.2"
        uid = pydicom.uid.UID(syntax)
        if not uid.is_transfer_syntax or (uid.is_private and not uid.is_encapsulated):
            raise DataError(file, f"its transfer syntax {syntax} is unknown", "convert it to a standard one")
        rows, columns = (whole_number(file, dataset, n, 1, 65535) for n in ("Rows", "Columns"))
        frames = whole_number(file, dataset, "NumberOfFrames", 1, 1 << 24, missing=1)
        samples = whole_number(file, dataset, "SamplesPerPixel", 1, 4, missing=1)
        allocated = whole_number(file, dataset, "BitsAllocated", 1, 64)
        photometric = str(dataset.get("PhotometricInterpretation", "") or "").strip()
        _check_sizes(file, rows, columns, frames, samples, allocated, photometric)
        if inflated is not None:
            start, length, compressed, whole = 0, inflated, False, False
        else:
            start, length, compressed, whole = _pixel_element(file, opened, at, size, uid)
    found = Found(
        dataset, syntax, compressed, frames, rows, columns, samples, photometric, start, length, whole
    )  # fmt: skip
    if not compressed:
        needed = _native_bytes(rows, columns, frames, samples, allocated, photometric)
        if length < needed:
            raise DataError(file, f"it is truncated: {length} of {needed} bytes of pixels are there", ADVICE)
    return found


def whole_number(file: Path, dataset: Any, name: str, low: int, high: int, missing: int | None = None) -> int:
    try:
        value = dataset.get(name)
        if value is None or value == "":
            if missing is not None:
                return missing
            raise DataError(file, f"its {name} is missing: it holds no image", "take it out")
        number = int(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(file, f"its {name} cannot be read ({error})", ADVICE) from None
    if not low <= number <= high:
        raise DataError(file, f"its {name} is {number}, expected {low}..{high}", ADVICE)
    return number


def _check_sizes(
    file: Path, rows: int, columns: int, frames: int, samples: int, allocated: int, photometric: str
) -> None:
    if allocated not in (1, 8, 16, 32, 64):
        raise DataError(file, f"its BitsAllocated is {allocated}, expected 1, 8, 16, 32 or 64", ADVICE)
    expected = {1: (*GREY, "PALETTE COLOR"), 3: _COLOUR}.get(samples, ())
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
        raise DataError(file, "its deflated part is truncated", ADVICE)
    return total


def _pixel_element(file: Path, opened: BinaryIO, at: int, size: int, uid: Any) -> tuple[int, int, bool, bool]:
    """Where the value of the pixel element begins, its length, whether it is of fragments, and of whole numbers."""
    opened.seek(at)
    head = opened.read(12)
    order = "<" if uid.is_little_endian else ">"
    if len(head) < 8:
        raise DataError(file, "it ends before its pixels: truncated, or no image", ADVICE)
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
        raise DataError(file, "its pixels have no length although they are not compressed", ADVICE)
    if start + length > size:
        raise DataError(file, f"it is truncated: {size - start} of {length} bytes of pixels are there", ADVICE)
    return start, length, False, element == 0x10


def _native_bytes(rows: int, columns: int, frames: int, samples: int, allocated: int, photometric: str) -> int:
    values = rows * columns * frames * samples
    if allocated == 1:
        return -(-values // 8)
    if photometric == "YBR_FULL_422":
        values = values // 3 * 2
    return values * allocated // 8


def check_fragments(file: Path, found: Found) -> None:
    """Every frame is there and whole, and is of the size that the header says."""
    pydicom = load_pydicom()
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
        raise DataError(file, error, ADVICE) from None


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
