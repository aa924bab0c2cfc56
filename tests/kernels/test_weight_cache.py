"""Weights kept between calls give the same bits, follow the layer's sizes, and are forgotten when told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medmpi import kernels as K
from tests.kernels.staged import HOST_BACKENDS

LONG_WHEN_EMULATED = True

# channels, outputs, filter, stride, padding, groups, algorithm
LAYERS = [
    (64, 96, 3, 1, 1, 1, "winograd"),
    (512, 256, 3, 1, 1, 1, "winograd"),  # too large to be kept within one call
    (64, 96, 3, 1, 1, 1, "direct"),
    (48, 40, 3, 2, 1, 1, "auto"),
    (256, 512, 3, 2, 1, 1, "auto"),
    (32, 33, 5, 1, 2, 1, "auto"),
    (32, 64, 3, 1, 1, 4, "auto"),
    (64, 130, 1, 1, 0, 1, "auto"),
    (200, 512, 1, 1, 0, 1, "auto"),
    (96, 64, 1, 2, 0, 1, "auto"),
    (64, 3, 1, 1, 0, 1, "auto"),
    (3, 64, 7, 2, 3, 1, "auto"),
    (24, 24, 3, 1, 1, 24, "auto"),
]


def layer(c: int, k: int, size: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((size, size, c // groups, k), dtype=np.float32), rng.standard_normal(k, dtype=np.float32)


@pytest.mark.parametrize(("c", "k", "size", "stride", "padding", "groups", "algo"), LAYERS)
@pytest.mark.usefixtures("backend")
def test_same_bits_with_and_without(
    c: int, k: int, size: int, stride: int, padding: int, groups: int, algo: str
) -> None:
    weight, bias = layer(c, k, size, groups)
    cache = K.WeightCache()
    rng = np.random.default_rng(1)
    for n, side in ((1, 12), (3, 12), (1, 12), (2, 9), (1, 12)):
        x = rng.standard_normal((n, side, side, c), dtype=np.float32)
        options = {"stride": stride, "padding": padding, "groups": groups, "algo": algo, "relu": True}
        expected = K.conv2d(x, weight, bias, **options)
        out = np.full_like(expected, np.nan)
        np.testing.assert_array_equal(K.conv2d(x, weight, bias, cache=cache, out=out, **options), expected)


def test_the_cache_is_used_until_cleared() -> None:
    weight, _ = layer(64, 64, 3, 1)
    x = np.ones((1, 8, 8, 64), np.float32)
    cache = K.WeightCache()
    assert cache.nbytes() == 0
    first = K.conv2d(x, weight, padding=1, cache=cache)
    assert cache.nbytes() >= weight.nbytes
    weight *= 2
    np.testing.assert_array_equal(K.conv2d(x, weight, padding=1, cache=cache), first)  # as documented
    cache.clear()
    assert cache.nbytes() == 0
    np.testing.assert_allclose(K.conv2d(x, weight, padding=1, cache=cache), 2 * first, rtol=1e-5, atol=1e-4)


def test_backends_do_not_share() -> None:
    weight, _ = layer(32, 64, 3, 1)
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 32), dtype=np.float32)
    cache, before = K.WeightCache(), K.backend()
    try:
        for _ in range(2):
            for name in HOST_BACKENDS:
                K.use_backend(name)
                expected = K.conv2d(x, weight, padding=1)
                np.testing.assert_array_equal(K.conv2d(x, weight, padding=1, cache=cache), expected)
    finally:
        K.use_backend(before)


def test_threads_may_share_a_layer() -> None:
    weight, _ = layer(64, 64, 3, 1)
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 64), dtype=np.float32)
    expected = K.conv2d(x, weight, padding=1)
    for _ in range(20):
        cache = K.WeightCache()
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(K.conv2d, x, weight, padding=1, cache=cache) for _ in range(8)]
        for done in work:
            np.testing.assert_array_equal(done.result(), expected)
