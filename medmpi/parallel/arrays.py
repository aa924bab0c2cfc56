"""Named arrays from all ranks to one and back, of any size: in raw pieces, never as one pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .world import World

Arrays = dict[str, NDArray[Any]]
_PIECE = 1 << 28  # bytes of one message: counts stay far below 2^31
_TAG = 3


def gather_arrays(world: World, arrays: Mapping[str, NDArray[Any]], operation: str) -> list[Arrays] | None:
    """Every rank's arrays in rank order on rank 0 (its own as they are), None elsewhere. Collective.

    Ranks are served one after another, so rank 0 needs no more room than for the result.
    """
    mine = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    headers = world.gather({name: (array.dtype.str, array.shape) for name, array in mine.items()}, 0, operation)
    if headers is None:
        with world.guard(operation):
            for array in mine.values():
                for piece in _pieces(array):
                    world.comm.Send(piece, 0, _TAG)
        return None
    found: list[Arrays] = [mine]
    with world.guard(operation):
        for rank, header in enumerate(headers[1:], 1):
            theirs: Arrays = {}
            for name, (dtype, shape) in header.items():
                theirs[name] = np.empty(shape, dtype)
                for piece in _pieces(theirs[name]):
                    world.comm.Recv(piece, rank, _TAG)
            found.append(theirs)
    return found


def hand_out(
    world: World, arrays: Mapping[str, NDArray[Any]] | None, wanted: Callable[[str], bool], operation: str
) -> Arrays:
    """Those of rank 0's arrays that this rank wants. Collective; the other ranks give None."""
    source = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    header = world.broadcast({name: (array.dtype.str, array.shape) for name, array in source.items()}, 0, operation)
    found: Arrays = {}
    for name, (dtype, shape) in header.items():
        array = source[name] if world.rank == 0 else np.empty(shape, dtype)
        for piece in _pieces(array):
            world.broadcast_array(piece, 0, operation)
        if wanted(name):
            found[name] = array
    return found


def _pieces(array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """The bytes of a contiguous array, in pieces that one message can hold."""
    flat = array.reshape(-1).view(np.uint8)
    return [flat[at : at + _PIECE] for at in range(0, flat.size, _PIECE)]
