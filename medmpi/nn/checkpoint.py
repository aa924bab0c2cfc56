"""Models in files that torch reads too: its names, its layouts, in the safetensors format. Nothing is ever unpickled.

A file is written under another name in the same folder, forced to disk and renamed: a crash leaves the old one. Its
metadata holds a CRC-32 of the tensors, which ``load`` checks where it is there (files made elsewhere have none).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from .. import kernels as K
from ..files import replacing
from .graph import Graph

_CRC = "medmpi.crc32"
_COUNTER = "num_batches_tracked"


class CheckpointError(Exception):
    """A checkpoint cannot be read, or does not fit the model; the message names the file or the tensors."""


def state_dict(graph: Graph) -> dict[str, NDArray[Any]]:
    """Parameters and buffers by the names and in the layouts of torch's ``state_dict``; arrays of their own."""
    state: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        layer = node.layer
        for name, value in {**layer.p, **layer.b}.items():
            state[f"{node.name}.{name}"] = np.array(layer.to_torch(name, K.to_host(value)), order="C", copy=True)
    return state


def load_state_dict(
    graph: Graph, state: Mapping[str, NDArray[Any]], *, strict: bool = True
) -> tuple[list[str], list[str]]:
    """Sets parameters and buffers from ``state``; returns the names it lacks and those that have no place.

    ``strict`` makes either an error; a shape or dtype that does not fit is one always (CheckpointError; nothing is
    changed then). As in torch, ``num_batches_tracked`` may be missing: old files do not have it.
    """
    targets: dict[str, tuple[Any, str, NDArray[Any]]] = {}
    for node in graph.nodes:
        for name, value in {**node.layer.p, **node.layer.b}.items():
            targets[f"{node.name}.{name}"] = node.layer, name, value
    missing = [name for name in targets if name not in state and not name.endswith("." + _COUNTER)]
    unexpected = [name for name in state if name not in targets]
    problems = []
    if strict and missing:
        problems.append(f"lacks {_some(missing)}")
    if strict and unexpected:
        problems.append(f"has {_some(unexpected)} that the model has not")
    for full, (layer, name, value) in targets.items():
        if full not in state:
            continue
        given, want = state[full], layer.to_torch(name, K.to_host(value)).shape
        if given.shape != want:
            problems.append(f"{full} has shape {given.shape}, expected {want}")
        elif given.dtype.kind != value.dtype.kind:
            problems.append(f"{full} has dtype {given.dtype}, expected {value.dtype}")
    if problems:
        raise CheckpointError("load_state_dict: state " + "; ".join(problems))
    for full, (layer, name, value) in targets.items():
        if full in state:
            value[...] = np.asarray(layer.from_torch(name, np.asarray(state[full])), value.dtype, order="C")
    return missing, unexpected


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _bytes(array: NDArray[Any]) -> memoryview:
    """The contents of a C-contiguous array, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> str:
    """CRC-32 over names, dtypes, shapes and contents in the order of names, as eight hex digits."""
    crc = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}\n".encode(), crc)
        crc = zlib.crc32(_bytes(array), crc)
    return f"{crc:08x}"


_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON that open a safetensors file whose contents follow in the order of ``tensors``."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"save: {name} has dtype {array.dtype}, expected one of {', '.join(_DTYPES)}")
        start, end = end, end + array.nbytes
        entries[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors and text metadata to ``path`` so that there is always a whole file of that name, old or new.

    CheckpointError names the file where it cannot be written; the old one is untouched then and nothing is left behind.
    """
    path = Path(path)
    # the widest types first, so that every tensor is aligned in the file
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    arrays = {name: np.asarray(tensors[name], order="C") for name in names}
    header = _header(arrays, {"format": "pt", **(metadata or {}), _CRC: _checksum(arrays)})
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(header)
            for array in arrays.values():
                file.write(_bytes(array))
    except OSError as error:
        raise CheckpointError(f"save: {path} cannot be written: {error}") from error


def _bfloat16(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    """These tensors of a file that has been checked: the upper halves of float32 numbers."""
    if not names:
        return {}
    found: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
        for name in names:
            start, end = entries[name]["data_offsets"]
            file.seek(8 + size + start)
            halves = np.frombuffer(file.read(end - start), "<u2")
            found[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entries[name]["shape"])
    return found


def load(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a safetensors file; bfloat16, which numpy does not have, becomes float32.

    CheckpointError names the file where it is missing, truncated, of another format or its checksum does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"load: {path} is missing, expected a safetensors file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            wide = {name for name in file.keys() if file.get_slice(name).get_dtype() == "BF16"}  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in file.keys() if name not in wide}  # noqa: SIM118
        tensors |= _bfloat16(path, wide)
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"load: {path} has {path.stat().st_size} bytes, expected a whole safetensors file of numpy's types: {error}"
        ) from error
    stored = metadata.pop(_CRC, None)
    if stored is not None and stored != _checksum(tensors):
        raise CheckpointError(f"load: {path} has tensors of checksum {_checksum(tensors)}, expected {stored}: damaged")
    return tensors, metadata
