"""One array in numpy's format (NEP 1), whose header is held against the bytes that are there before it is believed."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

DEFLATE_RATIO = 1032  # The most that deflate can expand; a larger claim is a lie.
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


def read_member_header(path: str, name: str, member: IO[bytes], size: int) -> Header:
    """Shape, whether in Fortran order, and dtype of an array of ``size`` bytes, header included."""
    formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(member)
        if version not in formats:
            raise ValueError(f"npy format version {version}")
        shape, fortran, dtype = formats[version](member)
    except ValueError as error:
        raise DataError(path, f"the header of {name} is damaged ({error})", "write the file again") from error
    if dtype.hasobject:
        raise DataError(path, f"{name} holds pickled objects, which could run code", "save it as a numeric array")
    declared = math.prod(shape) * dtype.itemsize
    if declared != size - member.tell():
        raise DataError(
            path,
            f"{name} declares {shape} {dtype}, {declared} bytes, but holds {size - member.tell()}",
            "fetch it again",
        )
    return shape, fortran, dtype


def read_member_data(path: str, name: str, member: IO[bytes], header: Header) -> NDArray[Any]:
    """The array behind a header that has been read."""
    shape, fortran, dtype = header
    declared = math.prod(shape) * dtype.itemsize
    data = member.read()
    if len(data) != declared:
        raise DataError(path, f"{name} ends after {len(data)} of {declared} bytes", "it is truncated: fetch it again")
    flat = np.frombuffer(data, dtype=dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def read_member(path: str, name: str, member: IO[bytes], size: int) -> NDArray[Any]:
    """One array; DataError where its header is damaged, lies, or names objects."""
    return read_member_data(path, name, member, read_member_header(path, name, member, size))
