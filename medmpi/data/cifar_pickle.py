"""CIFAR-10's Python batches, read without unpickling.

A pickle is a program, and loading one can run anything. This interpreter knows only the instructions of a dictionary
with lists of numbers, strings, and one plain uint8 array; of the names that a pickle may call, those of a numpy array
and of a byte string stand for inert markers here, and nothing is ever imported or called. Whatever else a file holds is
refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

_REFUSED = "it is not a plain CIFAR-10 batch and will not be unpickled; use the binary version (.bin)"
_LARGEST_STACK = 1 << 20


class _Refused(Exception):
    """What the file holds is not on the list."""


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
_BYTES = {"BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES = _NUMBERS | _BYTES | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}


class _Mark:
    pass


class _Name:
    """A name that the pickle wants to import; only these are known, and only as markers."""

    def __init__(self, module: str, name: str) -> None:
        if (module, name) not in _KNOWN:
            raise _Refused(f"it asks for {module}.{name}")
        self.kind = _KNOWN[module, name]


class _Dtype:
    def __init__(self, code: str) -> None:
        if code != "u1":
            raise _Refused(f"its array is of type {code!r}")


class _Array:
    """An array under construction: empty until its state has come."""

    pixels: NDArray[np.uint8] | None = None

    def set_state(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _Refused("its array has an unknown state")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # Python 2's strings are bytes.
            data = data.encode("latin-1")
        rank_two = isinstance(shape, tuple) and len(shape) == 2 and all(type(s) is int and s >= 0 for s in shape)
        if not (rank_two and isinstance(dtype, _Dtype) and isinstance(data, bytes)):
            raise _Refused("its array is not a plain two-dimensional one")
        if len(data) != shape[0] * shape[1]:
            raise _Refused(f"its array {shape} comes with {len(data)} bytes")
        self.pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (n, m) and labels int64 (n,) of a batch. DataError for whatever is not a plain batch."""
    try:
        content = _interpret(file.read_bytes())
        array, labels = (content.get(key) for key in ("data", "labels"))
        if not isinstance(array, _Array) or array.pixels is None:
            raise _Refused("it has no array called data")
        if not (isinstance(labels, list) and all(type(label) is int and abs(label) < 2**31 for label in labels)):
            raise _Refused("it has no list of whole numbers called labels")
        if len(labels) != len(array.pixels):
            raise _Refused(f"it has {len(labels)} labels for {len(array.pixels)} images")
    except OSError as error:
        raise DataError(file, error.strerror or error, "check that it can be read") from error
    except _Refused as error:
        raise DataError(file, error, _REFUSED) from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(file, f"damaged ({error})", "fetch it again, or use the binary version (.bin)") from error
    return array.pixels, np.array(labels, dtype=np.int64)


def _interpret(data: bytes) -> dict[str, Any]:
    """The dictionary that the pickle describes, its keys as text."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if len(stack) > _LARGEST_STACK:
            raise _Refused("it is too deep")
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            break
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "MARK"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "MARK": _Mark}[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(module, attribute))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError("a tuple of missing values")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else _since_mark(stack)
            _typed(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                values = [key, value]
            else:
                values = _since_mark(stack)
            _typed(stack[-1], dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, _Array):
                target.set_state(state)
            elif not isinstance(target, _Dtype):
                raise _Refused("it builds an object")
        else:
            raise _Refused(f"it holds the instruction {name}")
    if len(stack) != 1:
        raise ValueError("no single result")
    content: dict[str, Any] = _typed(stack[0], dict)
    return content


def _call(function: Any, arguments: Any) -> Any:
    """What the known names stand for; the arguments that matter come with BUILD."""
    kind = _typed(function, _Name).kind
    values = _typed(arguments, tuple)
    if kind == "reconstruct":
        return _Array()
    if kind == "dtype":
        return _Dtype(values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0])
    if kind == "encode" and len(values) == 2 and values[1] == "latin1":
        return _typed(values[0], str).encode("latin-1")
    raise _Refused(f"it calls {kind}")


def _key(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(_typed(value, str))


def _since_mark(stack: list[Any]) -> list[Any]:
    at = len(stack) - 1
    while not isinstance(stack[at], _Mark):
        at -= 1
        if at < 0:
            raise IndexError("no mark")
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value
