"""clahe against a reference of the same steps in numpy, and against OpenCV where it is installed; its errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi import kernels as K


def reference(x, clip_limit, grid):
    """CLAHE in numpy, float32 where OpenCV has it."""
    levels = np.iinfo(x.dtype).max + 1
    extra = [
        0 if all(s % n == 0 for s, n in zip(x.shape, grid, strict=True)) else n - s % n
        for s, n in zip(x.shape, grid, strict=True)
    ]
    padded = x[np.ix_(*[mirrored(s, s + e) for s, e in zip(x.shape, extra, strict=True)])]
    th, tw = (s // n for s, n in zip(padded.shape, grid, strict=True))
    scale = np.float32(levels - 1) / np.float32(th * tw)
    tables = np.empty((*grid, levels), np.float32)
    for i, j in np.ndindex(*grid):
        counts = np.bincount(padded[i * th : (i + 1) * th, j * tw : (j + 1) * tw].ravel(), minlength=levels)
        if clip_limit > 0:
            limit = max(int(clip_limit * th * tw / levels), 1)
            cut = np.maximum(counts - limit, 0).sum()
            counts = np.minimum(counts, limit) + cut // levels
            rest = cut % levels
            if rest:
                counts[: rest * max(levels // rest, 1) : max(levels // rest, 1)][:rest] += 1
        tables[i, j] = np.minimum(np.rint(np.cumsum(counts).astype(np.float32) * scale), levels - 1)
    (i1, i2, p), (j1, j2, q) = (between(s, t, n) for s, t, n in zip(x.shape, (th, tw), grid, strict=True))
    p = p[:, None]
    upper = tables[i1[:, None], j1, x] * (1 - q) + tables[i1[:, None], j2, x] * q
    lower = tables[i2[:, None], j1, x] * (1 - q) + tables[i2[:, None], j2, x] * q
    return np.rint(upper * (1 - p) + lower * p).astype(x.dtype)


def mirrored(size, length):
    period = max(2 * size - 2, 1)
    k = np.arange(length) % period
    return np.where(k < size, k, period - k)


def between(size, tile, tiles):
    at = np.arange(size, dtype=np.float32) * (np.float32(1) / np.float32(tile)) - np.float32(0.5)
    low = np.floor(at)
    return np.maximum(low, 0).astype(int), np.minimum(low + 1, tiles - 1).astype(int), at - low


def image(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    slope = np.linspace(0.3, 0.7, shape[-1])
    return np.clip((slope + 0.1 * rng.standard_normal(shape)) * top, 0, top).astype(dtype)


CASES = [
    ((64, 96), (8, 8)),
    ((61, 97), (8, 8)),
    ((64, 97), (8, 8)),
    ((45, 30), (3, 5)),
    ((50, 40), (1, 1)),
    ((7, 5), (8, 8)),
    ((130, 300), (2, 3)),
    ((1, 9), (2, 2)),
]


@pytest.mark.parametrize("clip_limit", [0.0, 0.5, 2.0, 40.0])
@pytest.mark.parametrize(("shape", "grid"), CASES)
def test_equals_the_reference(backend, shape, grid, clip_limit):
    x = image(shape, np.uint8)
    np.testing.assert_array_equal(K.clahe(x, clip_limit, grid), reference(x, clip_limit, grid))


@pytest.mark.parametrize("clip_limit", [0.0, 3.0])
@pytest.mark.parametrize(("shape", "grid"), [((40, 50), (2, 2)), ((33, 47), (3, 2))])
def test_sixteen_bits_equal_the_reference(backend, shape, grid, clip_limit):
    x = image(shape, np.uint16)
    np.testing.assert_array_equal(K.clahe(x, clip_limit, grid), reference(x, clip_limit, grid))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("clip_limit", [0.0, 2.0, 40.0])
def test_equals_opencv(dtype, clip_limit):
    cv2 = pytest.importorskip("cv2")
    for shape, grid in CASES:
        x = image(shape, dtype)
        expected = cv2.createCLAHE(clip_limit, grid[::-1]).apply(x)
        np.testing.assert_array_equal(K.clahe(x, clip_limit, grid), expected)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    clip_limit=st.floats(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_equals_the_reference(shape, grid, clip_limit):
    x = image(shape, np.uint8)
    np.testing.assert_array_equal(K.clahe(x, clip_limit, grid), reference(x, clip_limit, grid))


def test_images_of_a_batch_are_equalised_each_on_its_own(with_threads):
    x = image((3, 70, 90), np.uint8)
    alone = np.stack([K.clahe(part, 2.0) for part in x])
    for n in (1, 2, 3):
        np.testing.assert_array_equal(with_threads(n, lambda: K.clahe(x, 2.0)), alone)
    out = np.empty_like(x)
    assert K.clahe(x, 2.0, out=out) is out
    np.testing.assert_array_equal(out, alone)


def test_flat_images():
    for value in (0, 7, 255):
        x = np.full((32, 32), value, np.uint8)
        np.testing.assert_array_equal(K.clahe(x, 2.0, 2), reference(x, 2.0, (2, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_limit": -1}, "clip_limit is -1"),
        ({"clip_limit": np.nan}, "clip_limit is nan"),
        ({"tile_grid": 0}, "tile_grid is 0"),
        ({"tile_grid": (8, 8, 8)}, "tile_grid is .*, expected an int or a pair"),
        ({"tile_grid": 2**31 - 1}, "expected fewer tiles"),
        ({"tile_grid": (2**40, 1)}, "tile_grid is"),
        ({"out": np.zeros((3, 3), np.uint8)}, "out has shape"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        K.clahe(np.zeros((16, 16), np.uint8), **arguments)


def test_inputs_that_are_refused():
    with pytest.raises(TypeError, match="dtype float32, expected uint8 or uint16"):
        K.clahe(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        K.clahe(np.zeros((0, 4), np.uint8))
    with pytest.raises(ValueError, match="expected \\(H, W\\) or \\(N, H, W\\)"):
        K.clahe(np.zeros(4, np.uint8))
    with pytest.raises(TypeError, match="not C-contiguous"):
        K.clahe(np.zeros((8, 8), np.uint8)[:, ::2])
