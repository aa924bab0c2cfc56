"""JSON and HDF5 files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from medmpi.data import DataError
from medmpi.files import replacing, write_whole

if TYPE_CHECKING:
    import h5py


def write_json(path: Path, content: Any) -> None:
    """JSON with sorted keys: the same content is the same bytes."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; DataError names the file and what it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "no such file", f"expected {what}") from None
    except (OSError, ValueError) as error:
        raise DataError(path, error, f"expected {what}") from error


class _Sink:
    """The file under an HDF5 file. HDF5 ends the process where writing fails (a full disk), so this keeps the error
    and pretends; whoever writes asks for it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        while self.error is None and done < len(view):
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        with contextlib.suppress(OSError):
            self._file.truncate(size)
        return size or 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def writing_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """A new HDF5 file that becomes ``path`` when the block ends without an error. Each ``flush`` of it tells whether
    the disk took what was written: OSError where it did not, there or at the end, and nothing is left."""
    import h5py

    class File(h5py.File):  # type: ignore[misc]
        def flush(self) -> None:
            super().flush()
            if sink.error is not None:
                raise sink.error

    with replacing(path) as temporary, temporary.open("w+b", buffering=0) as raw:
        sink = _Sink(raw)
        try:
            with File(sink, "w", **options) as file:
                yield file
        finally:
            if sink.error is not None:
                raise OSError(sink.error.errno, sink.error.strerror, str(path))
