"""Sums between nodes as bfloat16: their stated error, the same bits everywhere, and what is no number."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from medmpi import parallel
from medmpi.kernels.collective import sum_bfloat16, to_bfloat16
from medmpi.parallel import GradientBuckets, World

from .test_buckets import SIZES, backward, flat, node_by_node, values


def rounded(x: np.ndarray) -> np.ndarray:
    """To eight significant bits, ties to even, by exact arithmetic."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)


def test_rounding() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=5000) * 10.0 ** rng.integers(-30, 30, 5000)).astype(np.float32)
    x[:6] = [0.0, -0.0, 1.00390625, 1.01171875, np.inf, -np.inf]  # two ties among them
    half, back = np.empty(x.size, np.uint16), np.empty_like(x)
    to_bfloat16(x, half)
    sum_bfloat16(half[None], back)
    np.testing.assert_array_equal(back[:4], rounded(x[:4]))
    np.testing.assert_array_equal(back[4:6], x[4:6])
    np.testing.assert_array_equal(back[6:], rounded(x[6:]))
    x[:2] = np.frombuffer(np.array([0x7FFFFFFF, 0xFF800001], np.uint32).tobytes(), np.float32)
    to_bfloat16(x, half)
    sum_bfloat16(half[None], back)
    assert np.isnan(back[:2]).all()


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.mpi(min_size=3)
def test_error_is_as_stated(world: World, nodes: int) -> None:
    apart = parallel.start(timeout=30, nodes=nodes)
    parameters = flat(apart, SIZES)
    n = parameters.grad.size
    for bucket_bytes in (1, 40_000, 1 << 30):
        buckets = GradientBuckets(parameters, apart, bucket_bytes, wire="bf16")
        for step in range(2):
            backward(buckets, parameters, values(apart.rank, step, n), list(parameters.slices))
            expected = node_by_node(apart, step, n)
            size = np.zeros(n)
            for ranks in apart.node_ranks:
                size += np.abs(sum(values(r, step, n).astype(np.float64) for r in ranks))
            error = np.abs(parameters.grad - expected)
            assert (error <= (2.0**-7 + 2.0**-16) * size * (1 + 1e-6)).all()
            assert error.max() > 0
            assert len(set(apart.allgather(parameters.grad.tobytes()))) == 1
    apart.close()


@pytest.mark.mpi(min_size=3)
def test_what_is_no_number_arrives(world: World) -> None:
    apart = parallel.start(timeout=30, nodes=2)
    parameters = flat(apart, [100])
    buckets = GradientBuckets(parameters, apart, wire="bf16")
    parameters.grad[:] = 1.0
    if apart.rank == apart.size - 1:
        parameters.grad[3] = np.nan
        parameters.grad[4] = np.inf
    buckets.done(SimpleNamespace(name="n0"))
    buckets.finish()
    assert np.isnan(parameters.grad[3])
    assert np.isposinf(parameters.grad[4])
    np.testing.assert_array_equal(np.delete(parameters.grad, [3, 4]), apart.size)
    apart.close()
