"""PNG files (ISO/IEC 15948) of grey levels and colours, quick to write.

Each row is the differences to the pixel on the left, which zlib packs by their frequencies and runs alone (Z_RLE): on
mammograms a quarter of the time that the search for repeated strings takes, and smaller files.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SUB = 1  # the filter: bytes less the one a pixel to the left


def encode_png(pixels: NDArray[Any], spacing: tuple[float, float] | None = None) -> bytes:
    """A picture of pixels (h, w, c), uint8 or uint16, c 1 or 3; ``spacing`` (row, column in mm) as its resolution."""
    h, w, c = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    step = c * bits // 8
    values = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(h, w * step)
    rows = np.empty((h, 1 + w * step), np.uint8)
    rows[:, 0] = _SUB
    rows[:, 1 : 1 + step] = values[:, :step]
    np.subtract(values[:, step:], values[:, :-step], out=rows[:, 1 + step :])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = packer.compress(rows.data) + packer.flush()
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, 0 if c == 1 else 2, 0, 0, 0))]
    if spacing is not None:
        per_metre = [min(max(round(1000 / mm), 0), 2**31 - 1) for mm in reversed(spacing)]
        parts.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    return b"".join([*parts, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
