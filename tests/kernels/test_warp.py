"""warp: exact for whole-pixel moves, the blend of its definition otherwise, the same on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmpi import kernels
from tests.kernels.staged import on_backend, runnable_backends

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def _reference(x, matrix, bilinear):
    """The definition, pixel by pixel: positions of 16 fractional bits, weights of 8."""
    n, h, w, c = x.shape
    out = np.zeros_like(x)
    fixed = np.rint(np.asarray(matrix) * 65536).astype(np.int64)
    for image in range(n):
        for i in range(h):
            for j in range(w):
                column, row = (int(v) for v in fixed[image] @ np.array([j, i, 1]))
                if not bilinear:
                    row, column = (row + 32768) >> 16, (column + 32768) >> 16
                    if 0 <= row < h and 0 <= column < w:
                        out[image, i, j] = x[image, row, column]
                    continue
                u, v = (column >> 8) & 255, (row >> 8) & 255
                total = np.full(c, 32768, dtype=np.int64)
                for di, dj, weight in (
                    (0, 0, (256 - u) * (256 - v)),
                    (0, 1, u * (256 - v)),
                    (1, 0, (256 - u) * v),
                    (1, 1, u * v),
                ):
                    r, q = (row >> 16) + di, (column >> 16) + dj
                    if 0 <= r < h and 0 <= q < w:
                        total += weight * x[image, r, q].astype(np.int64)
                out[image, i, j] = total >> 16
    return out


def _turn(angle, h, w, scale=1.0):
    """About the centre of the image."""
    r = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    centre = np.array([(w - 1) / 2, (h - 1) / 2])
    return np.column_stack([r, centre - r @ centre])


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 1), (2, 6, 6, 3), (2, 4, 5, 6), (1, 1, 1, 1), (1, 1, 9, 2)])
def test_definition(backend, rng, shape, mode):
    n, h, w, _ = shape
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    for _ in range(4):
        matrix = np.stack([_turn(rng.uniform(-4, 4), h, w, rng.uniform(0.3, 2)) for _ in range(n)])
        matrix[..., 2] += rng.uniform(-3, 3, (n, 2))
        assert np.array_equal(kernels.warp(x, matrix, mode=mode), _reference(x, matrix, mode == "bilinear"))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_whole_pixel_moves_copy(backend, rng, mode):
    x = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    flip = np.array([[-1.0, 0, 7], [0, 1, 0]])
    down = np.array([[1.0, 0, 2], [0, 1, -3]])
    quarter = _turn(np.pi / 2, 8, 8)
    assert np.array_equal(kernels.warp(x, IDENTITY[None], mode=mode), x)
    assert np.array_equal(kernels.warp(x, flip[None], mode=mode), x[:, :, ::-1])
    assert np.array_equal(kernels.warp(x, quarter[None], mode=mode)[0], np.rot90(x[0], 1))
    moved = kernels.warp(x, down[None], mode=mode)
    assert np.array_equal(moved[:, 3:, :6], x[:, :5, 2:])
    assert not moved[:, :3].any()
    assert not moved[:, :, 6:].any()


def test_close_to_scipy(backend, rng):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    x = rng.integers(0, 256, (1, 20, 17, 1), dtype=np.uint8)
    matrix = _turn(0.3, 20, 17, 1.1)
    i, j = np.mgrid[:20, :17]
    column, row = np.tensordot(matrix[:, :2], np.stack([j, i]), 1) + matrix[:, 2][:, None, None]
    expected = ndimage.map_coordinates(np.pad(x[0, ..., 0], 9).astype(float), [row + 9, column + 9], order=1)
    # Two weights cut to 8 bits move a blend of values up to 255 by up to 2 * 255 / 256; half a level for rounding.
    assert np.abs(kernels.warp(x, matrix[None])[0, ..., 0] - expected).max() <= 2.5


@pytest.mark.parametrize("c", [1, 3, 6])
def test_gain_and_bias(backend, rng, c):
    x = rng.integers(0, 256, (4, 5, 3, c), dtype=np.uint8)
    gain, bias = rng.uniform(-0.5, 2, (4, c)), rng.uniform(-80, 80, (4, c))
    got = kernels.warp(x, np.tile(IDENTITY, (4, 1, 1)), gain=gain, bias=bias)
    exact = np.clip(gain[:, None, None] * x + bias[:, None, None], 0, 255)
    # Half a level from rounding, the rest from gain and bias held to 1/8192.
    assert np.abs(got - exact).max() <= 0.5 + 256 / 8192
    only = kernels.warp(x, np.tile(IDENTITY, (4, 1, 1)), bias=np.full((4, c), 7.0))
    assert np.array_equal(only, np.clip(x.astype(int) + 7, 0, 255))


@given(
    seed=st.integers(0, 2**32 - 1),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    c=st.sampled_from([1, 2, 3, 5]),
)
def test_any_matrix_stays_inside(seed, h, w, c):
    """The result lies between canaries, equals the definition, and is the same on all backends."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (2, h, w, c), dtype=np.uint8)
    matrix = rng.uniform(-1, 1, (2, 2, 3)) * rng.choice([0.1, 1, 30, 1e6])
    guarded = np.full(x.size + 128, 0xA5, dtype=np.uint8)
    out = guarded[64:-64].reshape(x.shape)
    for name in runnable_backends():
        with on_backend(name):
            assert kernels.warp(x, matrix, out=out) is out
            assert np.array_equal(out, _reference(x, matrix, True))
            assert (guarded[:64] == 0xA5).all()
            assert (guarded[-64:] == 0xA5).all()


def test_threads_do_not_matter(backend, rng, with_threads):
    x = rng.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    matrix = np.stack([_turn(a, 12, 12) for a in rng.uniform(-1, 1, 9)])
    one, three = (with_threads(t, lambda: kernels.warp(x, matrix)) for t in (1, 3))
    assert np.array_equal(one, three)


def test_empty_batch(backend):
    assert kernels.warp(np.zeros((0, 4, 4, 1), np.uint8), np.zeros((0, 2, 3))).shape == (0, 4, 4, 1)


X = np.zeros((2, 4, 4, 1), np.uint8)
M = np.tile(IDENTITY, (2, 1, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernels.warp(X.astype(np.float32), M), TypeError, "warp: x"),
        (lambda: kernels.warp([[1]], M), TypeError, "warp: x"),
        (lambda: kernels.warp(X[0], M), ValueError, "warp: x has 3 dimensions"),
        (lambda: kernels.warp(X, M[0]), ValueError, r"warp: matrix has shape \(2, 3\)"),
        (lambda: kernels.warp(X, M * np.nan), ValueError, "warp: matrix has numbers"),
        (lambda: kernels.warp(X, M, gain=np.ones(2)), ValueError, "warp: gain has shape"),
        (lambda: kernels.warp(X, M, bias=np.full((2, 1), 1e12)), ValueError, "warp: bias has numbers"),
        (lambda: kernels.warp(X, M, mode="cubic"), ValueError, "warp: mode is 'cubic'"),
        (lambda: kernels.warp(X, M, out=X), ValueError, "warp: out"),
        (lambda: kernels.warp(X, M, out=np.zeros((2, 4, 5, 1), np.uint8)), ValueError, "warp: out has shape"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
