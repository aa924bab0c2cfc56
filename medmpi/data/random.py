"""Counter-based random bits: a pure function of (seed, epoch, purpose, sample), never of a rank, thread or batch.

``sample_bits`` is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
over arrays of counters; ``stream_bits`` is numpy's Philox4x64 bit generator, whose raw output is fixed for good, unlike
the distributions that numpy builds on it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What the bits are for, so that no two uses share a counter."""

    ORDER = 1
    SPLIT = 2
    AUGMENT = 3
    PHANTOM = 4
    EXAMPLES = 5


def stream_bits(n: int, *, seed: int, epoch: int = 0, purpose: Purpose) -> NDArray[np.uint64]:
    """``n`` 64-bit words of the stream of (seed, epoch, purpose)."""
    return philox(seed, epoch, purpose).random_raw(n)


def philox(seed: int, epoch: int, purpose: Purpose, position: int = 0) -> np.random.Philox:
    """numpy's generator of bits at a place of its own. Any integer is a seed; 64 bits of it count."""
    # Arrays, because numpy makes a list that holds a number beyond 2**63 float64.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, position, int(purpose)], dtype=np.uint64))


def permutation(n: int, *, seed: int, epoch: int = 0, purpose: Purpose) -> NDArray[np.int64]:
    """A permutation of ``0..n-1``: the order of ``n`` random words, ties (1 in 2**64) by position."""
    return np.argsort(stream_bits(n, seed=seed, epoch=epoch, purpose=purpose), kind="stable").astype(np.int64)


def sample_bits(ids: ArrayLike, words: int, *, seed: int, epoch: int, purpose: Purpose) -> NDArray[np.uint32]:
    """``(n, words)`` random 32-bit words, row ``i`` a function of (seed, epoch, purpose, ``ids[i]``) alone."""
    sample = np.asarray(ids, dtype=np.uint64)[:, None]
    block = np.arange(-(-words // 4), dtype=np.uint64)[None, :]
    shape = (sample.shape[0], block.shape[1])
    # Counter: sample (64 bits), epoch (32), purpose and block (8 + 24); key: the seed.
    c0 = np.broadcast_to(sample & _MASK32, shape)
    c1 = np.broadcast_to(sample >> _SHIFT32, shape)
    c2 = np.full(shape, epoch & 0xFFFFFFFF, dtype=np.uint64)
    c3 = np.broadcast_to(block | np.uint64(int(purpose) << 24), shape)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT32) ^ c1 ^ np.uint64(k0),
            p1 & _MASK32,
            (p0 >> _SHIFT32) ^ c3 ^ np.uint64(k1),
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    bits = np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)
    return bits.reshape(shape[0], 4 * shape[1])[:, :words]


def uniform(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Bits as float32 in [0, 1): the upper 24 bits, so that 1.0 cannot come out."""
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
