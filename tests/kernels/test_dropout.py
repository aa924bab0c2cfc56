"""Dropout's bits against Philox4x32-10 in plain Python integers, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

WORD = 2**32 - 1


def philox(counter, key):
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def bits(seed, element):
    """The 32 bits of one element: word (e % 64) / 16 of counter e / 64 * 16 + e % 16."""
    counter = element // 64 * 16 + element % 16
    return philox((counter & WORD, counter >> 32, 0, 0), (seed & WORD, seed >> 32))[element % 64 // 16]


def test_the_reference_gives_the_published_vectors():
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((WORD,) * 4, (WORD,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 5), (2**64 - 1, 63), (987654321987, 2**40 + 17), (3, 2**36)])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_bits(rng, seed, offset, p):
    x = rng.standard_normal(300).astype(np.float32)
    keep = np.array([bits(seed, offset + i) >= round(p * 2**32) for i in range(300)])
    y = kernels.dropout(x, p, seed=seed, offset=offset, out=np.full(300, np.nan, np.float32))
    np.testing.assert_array_equal(y, np.where(keep, x * np.float32(1 / (1 - p)), 0))
    np.testing.assert_array_equal(kernels.dropout_backward(x, p, seed=seed, offset=offset), y)
    kernels.dropout(x, p, seed=seed, offset=offset, out=x)
    np.testing.assert_array_equal(x, y)


def test_a_part_draws_the_bits_of_the_whole(rng, with_threads):
    x = rng.standard_normal((7, 111, 97)).astype(np.float32)
    whole = with_threads(3, lambda: kernels.dropout(x, 0.3, seed=11, offset=29))
    parts = [kernels.dropout(x[i], 0.3, seed=11, offset=29 + i * x[0].size) for i in range(7)]
    np.testing.assert_array_equal(np.stack(parts), whole)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_share_and_scale(p):
    n = 200_000
    x = np.ones(n, np.float32)
    y = kernels.dropout(x, p, seed=5)
    dropped = (y == 0).sum()
    assert abs(dropped - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}
    other = kernels.dropout(x, p, seed=6)
    agree = ((y == 0) & (other == 0)).sum()
    assert abs(agree - n * p * p) < 6 * (n * p * p) ** 0.5


def test_ends():
    x = np.array([1, np.nan, np.inf, -2] * 50, np.float32)
    np.testing.assert_array_equal(kernels.dropout(x, 0.0, seed=1), x)
    np.testing.assert_array_equal(kernels.dropout(x, 1.0, seed=1), 0)
    assert kernels.dropout(np.empty((0, 3), np.float32), 0.5, seed=1).shape == (0, 3)


def test_errors():
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"dropout: p is 1.5\d*, expected 0 <= p <= 1"):
        kernels.dropout(x, 1.5, seed=0)
    with pytest.raises(ValueError, match=r"dropout: seed is -1, expected 0 or more"):
        kernels.dropout(x, 0.5, seed=-1)
    with pytest.raises(ValueError, match="dropout_backward: offset is -4"):
        kernels.dropout_backward(x, 0.5, seed=0, offset=-4)
    with pytest.raises(TypeError, match="dropout: x has dtype int64, expected float32"):
        kernels.dropout(np.ones(4, np.int64), 0.5, seed=0)
