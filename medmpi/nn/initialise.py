"""Initial values of parameters: torch's distributions, drawn from a generator keyed by seed and parameter name.

An initializer is called with a generator, the shape and torch's fans of the parameter and returns float32 values. The
random numbers are not torch's; the distributions are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import prod, sqrt
from typing import Literal, TypeAlias

import numpy as np

from ..kernels.arrays import Array

Initializer: TypeAlias = Callable[[np.random.Generator, tuple[int, ...], int, int], Array]


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator of the parameter ``name``: the same on every rank and whatever else the model holds."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def constant(value: float) -> Initializer:
    """``value`` everywhere."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        return np.full(shape, value, np.float32)

    return draw


def uniform(bound: float) -> Initializer:
    """Uniform over [-bound, bound)."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)

    return draw


def fan_uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Uniform over +-1/sqrt(fan_in): torch's default for weights (Kaiming with a = sqrt(5)) and biases."""
    return uniform(1 / sqrt(fan_in) if fan_in else 0.0)(rng, shape, fan_in, fan_out)


def normal(std: float) -> Initializer:
    """Normal around 0."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        return rng.standard_normal(shape, np.float32) * np.float32(std)

    return draw


def truncated_normal(std: float, bound: float = 2.0) -> Initializer:
    """Normal around 0, drawn again outside [-bound, bound] (an absolute bound, as ``torch.nn.init.trunc_normal_``)."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        values = rng.standard_normal(prod(shape), np.float32) * np.float32(std)
        while (outside := np.flatnonzero(np.abs(values) > bound)).size:
            values[outside] = rng.standard_normal(outside.size, np.float32) * np.float32(std)
        return values.reshape(shape)

    if not std < 4 * bound:
        raise ValueError(f"truncated_normal: std is {std}, expected less than 4 bounds of {bound}")
    return draw


def kaiming_normal(mode: Literal["fan_in", "fan_out"] = "fan_in") -> Initializer:
    """Normal with variance 2/fan, for layers before a ReLU (He et al. 2015); ``fan_out`` is torchvision's ResNet."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        fan = fan_in if mode == "fan_in" else fan_out
        return normal(sqrt(2 / fan))(rng, shape, fan_in, fan_out)

    return draw
