"""The gradient of a convolution for its weight: every way the work is cut, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmpi import kernels

LONG_WHEN_EMULATED = True

Array = NDArray[np.float32]


class Case(NamedTuple):
    n: int
    h: int
    w: int
    c: int
    r: int
    s: int
    k: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        (top, bottom), (left, right) = self.padding
        return (
            (self.h + top + bottom - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1,
            (self.w + left + right - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1,
        )


def same(pad: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((pad, pad), (pad, pad))


CASES = [
    # few channels: the taps of one, two or three filter rows in a tile, and more than a tile
    Case(2, 40, 33, 3, 3, 3, 64, padding=same(1)),
    Case(3, 30, 31, 1, 3, 3, 64, padding=same(1)),
    Case(2, 19, 20, 1, 5, 5, 6, padding=same(2)),
    Case(2, 18, 17, 2, 3, 3, 20, padding=same(1)),
    Case(1, 61, 50, 3, 7, 7, 40, (2, 2), same(3)),
    Case(2, 20, 20, 3, 3, 3, 8, (1, 1), same(2), (2, 2)),
    Case(2, 20, 20, 3, 3, 3, 8, (1, 1), same(2), (2, 1)),
    # several images to a block, several rows to a block, chunks of blocks, panels over threads
    Case(33, 8, 8, 17, 3, 3, 33, padding=same(1)),
    Case(9, 4, 4, 70, 3, 3, 140, padding=same(1)),
    Case(20, 7, 7, 15, 3, 3, 12, padding=same(1)),
    Case(2, 33, 40, 30, 3, 3, 47, padding=same(1)),
    Case(2, 3, 300, 14, 3, 3, 32, padding=same(1)),
    Case(3, 9, 9, 128, 3, 3, 160, padding=same(1)),
    # one tap, strides, dilation, padding on one side, none, and more than the window covers
    Case(4, 14, 14, 40, 1, 1, 70),
    Case(5, 20, 21, 100, 1, 1, 20),
    Case(2, 33, 30, 64, 1, 1, 2),
    Case(2, 33, 30, 3, 1, 1, 45),
    Case(24, 7, 7, 300, 1, 1, 330),
    Case(24, 7, 7, 330, 1, 1, 300),
    Case(8, 7, 7, 740, 1, 1, 720),
    Case(3, 7, 7, 260, 1, 1, 50),
    Case(3, 7, 7, 50, 1, 1, 260),
    Case(9, 15, 15, 60, 1, 1, 200, (2, 2)),
    Case(5, 11, 12, 20, 1, 1, 3, (3, 2)),
    Case(4, 15, 15, 40, 1, 1, 70, (2, 2)),
    Case(2, 5, 6, 9, 1, 1, 7, padding=((0, 2), (0, 1))),
    Case(2, 6, 5, 9, 1, 1, 7, (2, 2), ((0, 1), (0, 3))),
    Case(2, 17, 16, 20, 3, 3, 24, (2, 2), same(1)),
    Case(2, 17, 16, 20, 3, 2, 24, (3, 1), ((1, 0), (0, 2))),
    Case(2, 21, 22, 9, 3, 3, 24, (1, 2), same(2), (2, 2)),
    Case(2, 12, 13, 16, 5, 5, 32, padding=same(2)),
    Case(2, 9, 10, 5, 3, 3, 7, padding=((4, 4), (5, 5))),
    Case(2, 12, 11, 6, 3, 3, 7, (2, 2)),
    Case(2, 10, 9, 24, 3, 3, 36, (1, 1), same(1), (1, 1), 3),
    Case(2, 10, 9, 6, 3, 3, 8, (1, 1), same(1), (1, 1), 2),
    Case(1, 1, 1, 1, 1, 1, 1),
    Case(0, 9, 9, 8, 3, 3, 8, padding=same(1)),
]


def gradient(case: Case, dy: Array, x: Array, out: Array | None = None, algo: str = "direct") -> Array:
    return kernels.conv2d_backward_weight(
        dy,
        x,
        weight_shape=(case.r, case.s, case.c // case.groups, case.k),
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
        algo=algo,
        out=out,
    )


def reference(case: Case, dy: Array, x: Array) -> NDArray[np.float64]:
    rows, columns = case.out_size
    padded = np.pad(x.astype(np.float64), ((0, 0), *case.padding, (0, 0)))
    gc, gk = case.c // case.groups, case.k // case.groups
    dweight = np.zeros((case.r, case.s, gc, case.k))
    for r in range(case.r):
        for s in range(case.s):
            top, left = r * case.dilation[0], s * case.dilation[1]
            seen = padded[:, top:, left:][:, :: case.stride[0], :: case.stride[1]][:, :rows, :columns]
            for group in range(case.groups):
                a = seen[..., group * gc : (group + 1) * gc].reshape(-1, gc)
                b = dy[..., group * gk : (group + 1) * gk].reshape(-1, gk).astype(np.float64)
                dweight[r, s, :, group * gk : (group + 1) * gk] = a.T @ b
    return dweight


def check_exact(case: Case, seed: int = 0) -> None:
    """Small integers: every sum is exact in float32, so every order of summation gives the same bits."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (case.n, case.h, case.w, case.c)).astype(np.float32)
    dy = rng.integers(-3, 4, (case.n, *case.out_size, case.k)).astype(np.float32)
    exact = reference(case, dy, x)
    before = rng.integers(-9, 10, exact.shape).astype(np.float32)
    np.testing.assert_array_equal(gradient(case, dy, x, before.copy()), before + exact)
    np.testing.assert_array_equal(gradient(case, dy, x), exact)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = kernels.threads()
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(before)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("backend", "threads")
def test_integers_are_exact(case: Case) -> None:
    check_exact(case)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    groups = number(1, 3)
    r, s, dilation = number(1, 4), number(1, 4), (number(1, 2), number(1, 2))
    padding = ((number(0, 2), number(0, 2)), (number(0, 2), number(0, 2)))
    h, w = dilation[0] * (r - 1) + number(1, 14), dilation[1] * (s - 1) + number(1, 14)
    stride = (number(1, 3), number(1, 3))
    return Case(
        number(0, 3), h, w, groups * number(1, 18), r, s, groups * number(1, 40), stride, padding, dilation, groups
    )


@given(cases(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
@pytest.mark.usefixtures("backend")
def test_any_shape(case: Case, seed: int) -> None:
    check_exact(case, seed)


# Winograd's tiles: whole and cut ones, one block and several, chunks of tiles and panels over threads, partial vectors
WINOGRAD_CASES = [
    Case(8, 32, 32, 32, 3, 3, 32, padding=same(1)),
    Case(2, 15, 17, 33, 3, 3, 47, padding=same(1)),
    Case(4, 7, 7, 64, 3, 3, 160, padding=same(1)),
    Case(20, 4, 4, 100, 3, 3, 96, padding=same(1)),
    Case(3, 20, 13, 70, 3, 3, 64),
    Case(2, 13, 14, 48, 3, 3, 40, padding=((2, 0), (1, 2))),
    Case(4, 28, 28, 16, 5, 5, 32, padding=same(2)),
    Case(3, 15, 14, 33, 5, 5, 47, padding=((2, 3), (1, 2))),
]


@pytest.mark.parametrize("case", WINOGRAD_CASES, ids=str)
@pytest.mark.usefixtures("threads")
def test_winograd_is_chosen_and_accurate(backend: str, case: Case) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((case.n, case.h, case.w, case.c), np.float32)
    dy = rng.standard_normal((case.n, *case.out_size, case.k), np.float32)
    exact = reference(case, dy, x)
    before = rng.standard_normal(exact.shape, np.float32)
    got = gradient(case, dy, x, before.copy(), algo="auto")
    assert np.abs(got - (before + exact)).max() <= 5e-6 * np.abs(exact).max()
    if backend != "cuda":  # which has no Winograd
        assert (got != gradient(case, dy, x, before.copy())).any()  # else the direct sums were taken


@given(st.integers(0, 3), st.integers(1, 14), st.integers(1, 14), st.integers(1, 90), st.integers(1, 80), st.data())
@settings(deadline=None, max_examples=60)
@pytest.mark.usefixtures("backend")
def test_winograd_any_shape(n: int, h: int, w: int, c: int, k: int, data: st.DataObject) -> None:
    r = data.draw(st.sampled_from([3, 5]))
    top, bottom, left, right = (data.draw(st.integers(r // 2, 3)) for _ in range(4))
    case = Case(n, h, w, c, r, r, k, padding=((top, bottom), (left, right)))
    rng = np.random.default_rng(c)
    x = rng.standard_normal((n, h, w, c), np.float32)
    dy = rng.standard_normal((n, *case.out_size, k), np.float32)
    exact = reference(case, dy, x)
    # the scale of a sum of that many products
    scale = (n * h * w) ** 0.5 * np.abs(x).max(initial=0) * np.abs(dy).max(initial=0)
    assert np.abs(gradient(case, dy, x, algo="winograd") - exact).max() <= 5e-6 * scale


@pytest.mark.parametrize("algo", ["auto", "direct"])
@pytest.mark.parametrize("case", [case for case in CASES if case.n] + WINOGRAD_CASES, ids=str)
@pytest.mark.usefixtures("backend")
def test_thread_count_changes_no_bit(case: Case, algo: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((case.n, case.h, case.w, case.c), np.float32)
    dy = rng.standard_normal((case.n, *case.out_size, case.k), np.float32)
    before = kernels.threads()
    results = []
    for count in (1, 2, 3, 5):
        kernels.set_threads(count)
        results.append(gradient(case, dy, x, algo=algo))
    kernels.set_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize(
    "case",
    [
        Case(32, 32, 32, 64, 3, 3, 64, padding=same(1)),
        Case(32, 32, 32, 3, 3, 3, 64, padding=same(1)),
        Case(32, 8, 8, 256, 3, 3, 64, padding=same(1)),
        Case(8, 56, 56, 64, 1, 1, 256),
        Case(8, 28, 28, 256, 1, 1, 512),
        Case(2, 128, 128, 1, 3, 3, 64, padding=same(1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_long_sums_stay_accurate(case: Case, algo: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((case.n, case.h, case.w, case.c), np.float32)
    dy = rng.standard_normal((case.n, *case.out_size, case.k), np.float32)
    exact = reference(case, dy, x)
    assert np.abs(gradient(case, dy, x, algo=algo) - exact).max() <= 3e-6 * np.abs(exact).max()
