"""Concatenation, splitting, margins and layouts: exact copies."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")


def numbers(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def poison(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("axis", [-1, 0, 1, 3])
@pytest.mark.parametrize("sizes", [(5,), (64, 128), (3, 1, 200), (16, 0, 16)])
def test_concat_and_split(rng, axis, sizes):
    shapes = []
    for size in sizes:
        shape = [2, 3, 4, 7]
        shape[axis] = size
        shapes.append(tuple(shape))
    xs = [numbers(rng, shape) for shape in shapes]
    want = np.concatenate(xs, axis=axis)
    got = kernels.concat(xs, axis=axis, out=poison(want.shape))
    np.testing.assert_array_equal(got, want)
    parts = kernels.split(got, sizes, axis=axis)
    for part, x in zip(parts, xs, strict=True):
        np.testing.assert_array_equal(part, x)
    again = kernels.split(got, sizes, axis=axis, out=[poison(shape) for shape in shapes])
    for part, x in zip(again, xs, strict=True):
        np.testing.assert_array_equal(part, x)


@pytest.mark.parametrize(
    ("padding", "margin"),
    [(0, ((0, 0), (0, 0))), (2, ((2, 2), (2, 2))), ((1, 3), ((1, 1), (3, 3))), (((1, 0), (0, 4)), ((1, 0), (0, 4)))],
)
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 1, 64), (0, 3, 3, 2)])
def test_pad_and_crop(rng, padding, margin, shape):
    x = numbers(rng, shape)
    want = np.pad(x, ((0, 0), *margin, (0, 0)), constant_values=1.5)
    got = kernels.pad(x, padding, value=1.5, out=poison(want.shape))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(kernels.crop(got, padding, out=poison(shape)), x)


@pytest.mark.parametrize("shape", [(2, 3, 17, 19), (1, 64, 8, 8), (3, 1, 5, 5), (2, 37, 16, 33), (0, 3, 4, 4)])
def test_layouts(rng, shape):
    x = numbers(rng, shape)
    want = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    got = kernels.nchw_to_nhwc(x, out=poison(want.shape))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(kernels.nhwc_to_nchw(got, out=poison(shape)), x)


def test_large_copies_on_threads(rng, with_threads):
    x = numbers(rng, (4, 60, 61, 24))

    def run():
        wide = kernels.concat([x, x])
        return wide, *kernels.split(wide, (20, 28)), kernels.pad(x, 3), kernels.crop(x, 2), kernels.nhwc_to_nchw(x)

    for a, b in zip(with_threads(1, run), with_threads(3, run), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors(rng):
    x = numbers(rng, (2, 3, 3, 4))
    with pytest.raises(ValueError, match=r"concat: xs\[1\] has shape \(2, 2, 3, 4\), expected \(2, 3, 3, 4\) but for"):
        kernels.concat([x, np.ascontiguousarray(x[:, :2])])
    with pytest.raises(ValueError, match="concat: xs is empty"):
        kernels.concat([])
    with pytest.raises(ValueError, match="concat: axis is 4, expected -4 to 3"):
        kernels.concat([x], axis=4)
    with pytest.raises(ValueError, match="concat: out overlaps xs"):
        kernels.concat([x[:1], x[1:]], axis=0, out=x)
    with pytest.raises(ValueError, match=r"split: sizes is \[1, 2\], expected sizes that add up to 4"):
        kernels.split(x, (1, 2))
    with pytest.raises(ValueError, match="crop: padding is 2, expected margins within the image's 3 x 3"):
        kernels.crop(x, 2)
    with pytest.raises(ValueError, match="pad: padding is -1, expected 0 or more"):
        kernels.pad(x, -1)
    with pytest.raises(ValueError, match="nchw_to_nhwc: x has 2 dimensions, expected 4"):
        kernels.nchw_to_nhwc(x[0, 0])
    with pytest.raises(TypeError, match="pad: x is not C-contiguous"):
        kernels.pad(x.transpose(0, 3, 1, 2), 1)
