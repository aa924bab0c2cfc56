"""DICOM pixels that are not compressed, straight from the file into their array.

pydicom reads the whole file once more and copies the pixels three times, into fresh pages each time. Where images are
prepared by the thousand that was a third of the time and most of the memory traffic.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels

_SYNTAX = (2, 0x10)
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR", b"OV", b"SV", b"UV")


def syntax_of(head: bytes) -> str | None:
    """The transfer syntax in the meta information (PS3.10 7.1) that begins at byte 132; None where it is not plain.

    It is walked to its end as a reader does, so that no other syntax can hide behind it.
    """
    at, found = 132, None
    while at + 8 <= len(head):
        group, element, kind, length = struct.unpack("<HH2sH", head[at : at + 8])
        if group != 2:
            return found if group > 2 else None
        if not kind.isalpha() or not kind.isupper():
            return None
        at += 8
        if kind in _LONG:
            if at + 4 > len(head):
                return None
            (length,) = struct.unpack("<L", head[at : at + 4])
            at += 4
        if (group, element) == _SYNTAX:
            if found is not None:
                return None
            found = head[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += length
    return None


def read_native(
    file: Path, at: int, shape: tuple[int, ...], *, allocated: int, stored: int, high: int, signed: bool, little: bool
) -> NDArray[Any]:
    """Grey pixels of 8 or 16 bits from byte ``at`` on: the ``stored`` bits of each up to bit ``high``.

    Other bits do not count (PS3.5 8.1.1). Old files have some below the pixel's, where ``high`` is ``stored`` or more.
    """
    dtype = np.dtype(f"{'<' if little else '>'}{'i' if signed else 'u'}{allocated // 8}")
    pixels = kernels.empty(shape, dtype.newbyteorder("="))  # of pooled memory, which is in cache
    rest = memoryview(pixels.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    with file.open("rb", buffering=0) as opened:
        opened.seek(at)
        while rest:
            count = opened.readinto(rest)
            if not count:
                raise EOFError(f"it ends {len(rest)} bytes before its pixels do")
            rest = rest[count:]
    if not dtype.isnative:
        pixels.byteswap(inplace=True)
    above, below = allocated - 1 - high, high + 1 - stored
    if below or (above and pixels.size and _beyond(pixels, stored, signed=signed)):
        np.left_shift(pixels, above, out=pixels)
        np.right_shift(pixels, above + below, out=pixels)
    return pixels


def _beyond(pixels: NDArray[Any], stored: int, *, signed: bool) -> bool:
    """Whether a pixel does not fit into its stored bits."""
    if not signed:
        return bool(pixels.max() >> stored)
    low, high = int(pixels.min()), int(pixels.max())
    return low < -(1 << (stored - 1)) or high >= 1 << (stored - 1)
