"""Reads an HDF5 file through, in a process of its own.

The library loops for ever or crashes over some damaged files (seen with damaged heaps of strings). Better there, under
a time limit, than in a rank. As a program, ``python hdf5_check.py FILE``, it prints what is wrong and ends with 1;
it imports nothing of medmpi then, to start quickly (-P: the modules beside it hide those of the library).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SECONDS, _BYTES_PER_SECOND = 60.0, 20e6
_SLAB = 16 << 20


def check_hdf5(path: Path) -> None:
    """DataError where the file cannot be read to its end: damaged, or the library crashed or hung over it."""
    from .errors import DataError

    seconds = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__, str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(path, f"it was not read through after {seconds:.0f} s: damaged", "write it again") from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        cause = said[-1] if done.returncode == 1 and said else f"HDF5 crashed on it ({done.returncode})"
        raise DataError(path, f"it cannot be read as HDF5 ({cause})", "it may be truncated: write it again")


def _read_through(path: str) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        dict(file.attrs)
        for name in file:
            found = file[name]
            if not isinstance(found, h5py.Dataset) or not found.ndim or found.is_virtual:
                continue
            if found.chunks is not None and found.nbytes:
                expected = 1
                for n, c in zip(found.shape, found.chunks, strict=True):
                    expected *= -(-n // c)
                if found.id.get_num_chunks() < expected:
                    continue  # never written: no need to read the zeros
            elif found.id.get_storage_size() < found.nbytes:
                continue
            step = max(1, _SLAB // max(1, found.nbytes // max(1, len(found))))
            for at in range(0, len(found), step):
                found[at : at + step]


if __name__ == "__main__":
    try:
        _read_through(sys.argv[1])
    except Exception as error:
        print(" ".join(str(error).split()) or type(error).__name__)
        sys.exit(1)
