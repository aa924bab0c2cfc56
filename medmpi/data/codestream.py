"""Is a compressed frame whole, and as large as the header says? Codecs accept cut streams without a word."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

_FRAME_MARKERS = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_TAIL = 64  # bytes that may follow the end of a stream: padding


@dataclass(frozen=True)
class Stream:
    """What a codestream says of itself."""

    rows: int
    columns: int
    components: int
    bits: int


def inspect(data: bytes) -> Stream:
    """Size of a JPEG, JPEG-LS or JPEG 2000 stream; ValueError says what is missing when it is not whole."""
    if data[:2] == b"\xff\xd8":
        stream = _jpeg(data)
    else:
        start = data.find(b"\xff\x4f\xff\x51")  # JPEG 2000, perhaps within a JP2 file
        if start < 0:
            raise ValueError("the compressed pixels begin with no JPEG or JPEG 2000 marker")
        stream = _jpeg2000(data, start)
    end = data.rfind(b"\xff\xd9")
    if end < 0 or len(data) - end - 2 > _TAIL:
        raise ValueError(f"the compressed pixels end without their end marker after {len(data)} bytes: truncated")
    return stream


def _jpeg(data: bytes) -> Stream:
    """The frame header behind the markers before it (ITU-T T.81 B.2; T.87 for JPEG-LS)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError(f"no marker at byte {at} of the compressed pixels: damaged")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if marker in _FRAME_MARKERS:
            if at + 10 > len(data):
                break
            bits, rows, columns, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return Stream(rows, columns, components, bits)
        if marker in (0xD9, 0xDA):
            break
        at += 2 + length
    raise ValueError("the compressed pixels have no frame header: truncated or damaged")


def _jpeg2000(data: bytes, start: int) -> Stream:
    """The SIZ segment (ITU-T T.800 A.5.1)."""
    if start + 43 > len(data):
        raise ValueError("the compressed pixels end within their size segment: truncated")
    x, y, x0, y0 = struct.unpack(">IIII", data[start + 8 : start + 24])
    (components,) = struct.unpack(">H", data[start + 40 : start + 42])
    return Stream(y - y0, x - x0, components, (data[start + 42] & 0x7F) + 1)


def check_rle(data: bytes) -> None:
    """The segment table of DICOM's RLE (PS3.5 G.5); ValueError where it cannot be."""
    if len(data) < 64:
        raise ValueError("an RLE frame is shorter than its table of segments: truncated")
    count, *offsets = struct.unpack("<16L", data[:64])
    used = offsets[:count]
    if not 1 <= count <= 15 or used[0] != 64 or any(b <= a for a, b in itertools.pairwise(used)):
        raise ValueError("the table of an RLE frame's segments is damaged")
    if used[-1] >= len(data):
        raise ValueError(f"an RLE frame's last segment begins at byte {used[-1]} of {len(data)}: truncated")
