"""Sizes and numbers that a caller gives: taken as what they are, or refused by the name of the argument."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

Pair: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]]
P = ParamSpec("P")
R = TypeVar("R")

LARGEST = 2**31 - 1  # of a size along one axis; products of a few stay within 64 bits


def whole(op: str, name: str, value: Any, least: int, most: int = LARGEST) -> int:
    """An integer within limits; TypeError where it is none, ValueError where it is outside."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} is {_short(value)}, expected an int") from None
    if number < least:
        raise ValueError(f"{op}: {name} is {number}, expected {least} or more")
    if number > most:
        raise ValueError(f"{op}: {name} is {number}, expected {most} or less")
    return number


def number(op: str, name: str, value: Any) -> float:
    """A real number; TypeError for anything else, text and arrays too."""
    if type(value) is float:
        return value
    if isinstance(value, int | np.floating | np.integer) or (isinstance(value, np.ndarray) and value.shape == ()):
        try:
            return float(value)
        except (OverflowError, TypeError, ValueError):
            raise ValueError(f"{op}: {name} is {_short(value)}, expected a number that a float holds") from None
    raise TypeError(f"{op}: {name} is {_short(value)}, expected a number")


def pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """(height, width) from an int or a pair."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        if len(value) != 2:
            raise ValueError(f"{op}: {name} is {_short(value)}, expected an int or a pair")
        return whole(op, name, value[0], least), whole(op, name, value[1], least)
    size = whole(op, name, value, least)
    return size, size


def margins(op: str, value: Any, name: str = "padding") -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from an int, a pair, or ((top, bottom), (left, right))."""
    if isinstance(value, Sequence | np.ndarray) and len(value) == 2 and any(map(np.ndim, value)):
        (top, bottom), (left, right) = (pair(op, name, side, 0) for side in value)
        return top, bottom, left, right
    height, width = pair(op, name, value, 0)
    return height, height, width, width


def four(op: str, name: str, shape: Any) -> tuple[int, int, int, int]:
    """Four sizes of 0 or more; ValueError, or TypeError where they are no integers."""
    if isinstance(shape, str | bytes) or not isinstance(shape, Sequence | np.ndarray):
        raise TypeError(f"{op}: {name} is {_short(shape)}, expected 4 sizes")
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} is {_short(tuple(shape))}, expected 4 sizes")
    n, h, w, c = (whole(op, name, size, 0) for size in shape)
    return n, h, w, c


def speaks_for(inner: str, **names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Errors of the operation ``inner`` leave the function under its own name, and with its names of arguments."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            try:
                return function(*args, **options)
            except (TypeError, ValueError) as error:
                text = str(error)
                if not text.startswith(f"{inner}: "):
                    raise
                for old, new in names.items():
                    text = re.sub(rf"\b{old}\b", new, text)
                raise type(error)(function.__name__ + text.removeprefix(inner)) from None

        return call

    return decorate


def _short(value: Any) -> str:
    """How a value looks, in a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
