"""Batch normalisation against float64 numpy, torch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

EPS = float(np.finfo(np.float32).eps)
SHAPES = [(2, 5, 7, 1), (2, 5, 7, 3), (3, 9, 11, 24), (4, 8, 8, 64), (2, 4, 3, 1500), (3, 33), (8, 40, 40, 17)]
SHAPES += [(5, 7, 7, 129), (1, 1, 1, 40), (2, 3, 3, 2048)]


def reference(x, gamma, beta, eps=1e-5, residual=None, relu=False):
    """y, mean and rstd in float64."""
    rows = x.astype(np.float64).reshape(-1, x.shape[-1])
    mean, rstd = rows.mean(axis=0), 1 / np.sqrt(rows.var(axis=0) + eps)
    y = (x - mean) * rstd * gamma.astype(np.float64) + beta
    y = y if residual is None else y + residual
    return (np.maximum(y, 0) if relu else y), mean, rstd


def reference_backward(dy, x, gamma, mean, rstd, y=None):
    """dx, dgamma, dbeta and the masked dy in float64."""
    axes = tuple(range(x.ndim - 1))
    dy = dy.astype(np.float64) if y is None else np.where(y > 0, dy, 0.0)
    xhat = (x - mean) * rstd
    dgamma, dbeta = (dy * xhat).sum(axis=axes), dy.sum(axis=axes)
    count = x.size // x.shape[-1]
    return gamma * rstd * (dy - dbeta / count - xhat * dgamma / count), dgamma, dbeta, dy


def make(rng, shape, mean=0.0, std=1.0):
    x = (mean + std * rng.standard_normal(shape)).astype(np.float32)
    gamma, beta = rng.uniform(0.5, 2, (2, shape[-1])).astype(np.float32) * [[1], [-0.5]]
    return x, gamma.astype(np.float32), beta.astype(np.float32)


def poison(shape):
    return np.full(shape, np.nan, np.float32)


def close(got, want, scale=1.0, length=1):
    """Within a few roundings of values of this scale, sqrt(length) more where that many are summed."""
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0.0) <= 16 * EPS * scale * max(1.0, length**0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1000, 1), (-3, 1e-3)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_forward(rng, shape, mean, std, relu, with_residual):
    x, gamma, beta = make(rng, shape, mean, std)
    residual = rng.standard_normal(shape).astype(np.float32) if with_residual else None
    out = poison(shape)
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=relu, residual=residual, out=out)
    want, want_mean, want_rstd = reference(x, gamma, beta, residual=residual, relu=relu)
    assert y is out
    np.testing.assert_allclose(mu, want_mean, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(rstd, want_rstd, rtol=2e-6)
    close(y, want, np.abs(want).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_backward(rng, shape, masked, mean):
    x, gamma, beta = make(rng, shape, mean)
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=masked)
    dy = rng.standard_normal(shape).astype(np.float32)
    dresidual = poison(shape)
    dx, dgamma, dbeta = kernels.batch_norm_backward(
        dy, x, gamma, mu, rstd, y=y if masked else None, dresidual=dresidual, out=poison(shape)
    )
    want = reference_backward(dy, x, gamma, mu, rstd, y if masked else None)
    rows = x.size // x.shape[-1]
    close(dx, want[0], np.abs(gamma * rstd * dy).max())
    close(dgamma, want[1], 4.0, rows)
    close(dbeta, want[2], 4.0, rows)
    np.testing.assert_array_equal(dresidual, want[3])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_computed_again_is_the_same_to_the_bit(rng, shape):
    x, gamma, beta = make(rng, shape, 3.0)
    beta[:] = 0  # many results near the edge
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True)
    dy = rng.standard_normal(shape).astype(np.float32)
    saved, again = poison(shape), poison(shape)
    want = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y, dresidual=saved)
    got = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, beta=beta, dresidual=again)
    for a, b in zip((*want, saved), (*got, again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_way_to_mask(rng):
    x, gamma, beta = make(rng, (3, 4, 4, 8))
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True)
    with pytest.raises(ValueError, match="y and beta are both given"):
        kernels.batch_norm_backward(x, x, gamma, mu, rstd, y=y, beta=beta)
    with pytest.raises(ValueError, match="beta is given without gamma"):
        kernels.batch_norm_backward_reduce(x, x, mu, rstd, beta=beta)


def test_backward_is_the_derivative_of_forward(rng):
    """Central differences of sum(dy * y) in float64, with residual and ReLU."""
    x, gamma, beta = make(rng, (2, 3, 2, 3))
    residual, dy = rng.standard_normal((2, *x.shape)).astype(np.float32)

    def objective(x, gamma, beta, residual):
        return (dy * reference(x, gamma, beta, residual=residual, relu=True)[0]).sum()

    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True, residual=residual)
    dresidual = poison(x.shape)
    got = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y, dresidual=dresidual)
    arguments = [a.astype(np.float64) for a in (x, gamma, beta, residual)]
    for i, gradient in enumerate((*got, dresidual)):
        for at in np.ndindex(gradient.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arguments]
                moved[i][at] += step
                ends.append(objective(*moved))
            assert gradient[at] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-4)


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    x, gamma, beta = make(rng, (4, 6, 5, 20))
    residual, dy = rng.standard_normal((2, *x.shape)).astype(np.float32)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta, residual)]
    y = torch.nn.functional.batch_norm(leaves[0].permute(0, 3, 1, 2), None, None, leaves[1], leaves[2], True)
    y = torch.relu(y.permute(0, 2, 3, 1) + leaves[3])
    y.backward(torch.tensor(dy))
    ours, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True, residual=residual)
    dresidual = poison(x.shape)
    got = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=ours, dresidual=dresidual)
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-5, atol=1e-5)
    for gradient, leaf in zip((*got, dresidual), leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_inference_uses_the_given_statistics(rng):
    x, gamma, beta = make(rng, (2, 5, 5, 12), 3.0)
    mean, var = rng.uniform(2, 4, 12).astype(np.float32), rng.uniform(0.1, 2, 12).astype(np.float32)
    y = kernels.batch_norm_inference(x, gamma, beta, mean, var, eps=1e-3, relu=True, out=poison(x.shape))
    want = (x - mean.astype(np.float64)) / np.sqrt(var.astype(np.float64) + 1e-3) * gamma + beta
    close(y, np.maximum(want, 0), np.abs(want).max())


def test_in_place_forward_and_backward(rng):
    x, gamma, beta = make(rng, (3, 6, 6, 20))
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True)
    moved = x.copy()
    assert kernels.batch_norm(moved, gamma, beta, relu=True, out=moved)[0] is moved
    np.testing.assert_array_equal(moved, y)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    dx, _, _ = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y)
    kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y, out=dy)
    np.testing.assert_array_equal(dy, dx)


@pytest.mark.parametrize(("rows", "channels"), [(70_001, 17), (16_400, 64), (1030, 1030)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_large_arrays_are_normalised_as_their_rows_are(host_backend, rng, rows, channels, with_residual, offset):
    """Outputs too large for the caches are written past them, wherever they begin."""
    x, gamma, beta = make(rng, (rows, channels))
    residual = rng.standard_normal(x.shape, dtype=np.float32) if with_residual else None
    mean, rstd = rng.standard_normal(channels), rng.uniform(0.5, 2, channels)
    out = poison(x.size + 32)[offset : offset + x.size].reshape(x.shape)
    y = kernels.batch_norm_apply(x, gamma, beta, mean, rstd, residual=residual, relu=True, out=out)
    for first in range(0, rows, 7001):
        part = slice(first, first + 7001)
        add = None if residual is None else residual[part]
        alone = kernels.batch_norm_apply(x[part], gamma, beta, mean, rstd, residual=add, relu=True)
        np.testing.assert_array_equal(y[part], alone)


def test_parameter_gradients_accumulate(rng):
    x, gamma, beta = make(rng, (3, 6, 6, 8))
    _, mu, rstd = kernels.batch_norm(x, gamma, beta)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    _, dgamma, dbeta = kernels.batch_norm_backward(dy, x, gamma, mu, rstd)
    twice, ones = np.ones(8, np.float32), np.ones(8, np.float32)
    kernels.batch_norm_backward(dy, x, gamma, mu, rstd, dgamma=twice, dbeta=ones)
    np.testing.assert_array_equal(twice, 1 + dgamma)
    np.testing.assert_array_equal(ones, 1 + dbeta)


@pytest.mark.parametrize("shape", [(16, 20, 20, 24), (64, 7, 7, 65)])
def test_threads_change_no_bit(rng, with_threads, shape):
    x, gamma, beta = make(rng, shape, 5.0)
    dy = rng.standard_normal(shape).astype(np.float32)

    def both():
        y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True)
        return y, mu, rstd, *kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y)

    for a, b in zip(with_threads(1, both), with_threads(3, both), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pieces_over_ranks_equal_the_whole(rng):
    """Rows split over three ranks: merged statistics and summed gradients give the whole batch's result."""
    x, gamma, beta = make(rng, (7, 5, 5, 10), 1000.0)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, relu=True)
    dx, dgamma, dbeta = kernels.batch_norm_backward(dy, x, gamma, mu, rstd, y=y)
    parts = [slice(0, 3), slice(3, 3), slice(3, 7)]
    counts, means, squares = zip(*(kernels.batch_norm_statistics(x[p]) for p in parts), strict=True)
    assert counts == (75, 0, 100)
    count = sum(counts)
    mean = sum(c * m for c, m in zip(counts, means, strict=True)) / count
    m2 = sum(s + c * (m - mean) ** 2 for c, m, s in zip(counts, means, squares, strict=True))
    merged = 1 / np.sqrt(m2 / count + 1e-5)
    np.testing.assert_allclose(mean, mu, rtol=1e-9)
    np.testing.assert_allclose(merged, rstd, rtol=1e-6)
    ours = [kernels.batch_norm_apply(x[p], gamma, beta, mean, merged, True) for p in parts]
    close(np.concatenate(ours), y, np.abs(y).max())
    sums = [kernels.batch_norm_backward_reduce(dy[p], x[p], mean, merged, o) for p, o in zip(parts, ours, strict=True)]
    sum_dy, sum_dy_xhat = (np.sum(part, axis=0) for part in zip(*sums, strict=True))
    close(sum_dy, dbeta, 4.0, count)
    close(sum_dy_xhat, dgamma, 4.0, count)
    gradients = [
        kernels.batch_norm_backward_apply(dy[p], x[p], gamma, mean, merged, sum_dy, sum_dy_xhat, count, o)
        for p, o in zip(parts, ours, strict=True)
    ]
    close(np.concatenate(gradients), dx, np.abs(dx).max())


def test_no_rows():
    x, gamma, beta = np.empty((0, 4, 4, 8), np.float32), np.ones(8, np.float32), np.zeros(8, np.float32)
    y, mu, rstd = kernels.batch_norm(x, gamma, beta, eps=0.25, relu=True)
    assert y.shape == x.shape
    assert (mu == 0).all()
    assert (rstd == 2).all()
    dx, dgamma, dbeta = kernels.batch_norm_backward(x, x, gamma, mu, rstd, y=y)
    assert dx.shape == x.shape
    assert not dgamma.any()
    assert not dbeta.any()


def test_a_constant_channel_has_no_variance():
    x = np.full((4, 9, 9, 5), 1e4 + 0.3, np.float32)
    gamma, beta = np.ones(5, np.float32), np.full(5, 2, np.float32)
    y, _, rstd = kernels.batch_norm(x, gamma, beta)
    np.testing.assert_allclose(rstd, 1e-5**-0.5)
    np.testing.assert_allclose(y, 2)


def test_nan_reaches_its_channel_only():
    x = np.ones((2, 3, 3, 20), np.float32)
    x[1, 2, 0, 7] = np.nan
    y, _, _ = kernels.batch_norm(x, np.ones(20, np.float32), np.zeros(20, np.float32), relu=True)
    assert np.isnan(y[..., 7]).all()
    assert not np.isnan(np.delete(y, 7, axis=-1)).any()


def test_errors():
    x, c = np.ones((2, 3, 3, 4), np.float32), np.ones(4, np.float32)
    wide = np.ones(4)
    with pytest.raises(ValueError, match=r"batch_norm: gamma has shape \(5,\), expected \(4,\)"):
        kernels.batch_norm(x, np.ones(5, np.float32), c)
    with pytest.raises(ValueError, match=r"batch_norm: eps is -1.*expected a finite number >= 0"):
        kernels.batch_norm(x, c, c, eps=-1)
    with pytest.raises(ValueError, match="batch_norm_inference: eps is nan"):
        kernels.batch_norm_inference(x, c, c, c, c, eps=float("nan"))
    with pytest.raises(TypeError, match="batch_norm: x has dtype float64, expected float32"):
        kernels.batch_norm(x.astype(np.float64), c, c)
    with pytest.raises(TypeError, match="batch_norm: residual is not C-contiguous"):
        kernels.batch_norm(x, c, c, residual=np.ones((2, 3, 3, 8), np.float32)[..., ::2])
    with pytest.raises(ValueError, match="batch_norm: out overlaps x"):
        kernels.batch_norm(x[:1], c, c, out=x.reshape(-1)[4:40].reshape(1, 3, 3, 4))
    with pytest.raises(ValueError, match=r"batch_norm: out has shape \(2, 4\), expected \(2, 3, 3, 4\)"):
        kernels.batch_norm(x, c, c, out=np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="batch_norm: x has 1 dimensions, expected 2 or more"):
        kernels.batch_norm(c, c, c)
    with pytest.raises(ValueError, match=r"batch_norm_backward: dy has shape \(9, 4\), expected \(18, 4\)"):
        kernels.batch_norm_backward(x[:1], x, c, wide, wide)
    with pytest.raises(ValueError, match=r"batch_norm_backward_apply: count is 0.*expected a number > 0"):
        kernels.batch_norm_backward_apply(x, x, c, wide, wide, wide, wide, 0)


def test_statistics_do_not_depend_on_how_a_batch_is_divided():
    """Two ranks' halves, merged, normalise to the same float32 values as the whole batch."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((13, 9, 7, 24)) * 3 + 5).astype(np.float32)
    _, mean, m2 = kernels.batch_norm_statistics(x)
    gamma, beta = rng.standard_normal(24).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    for cut in (1, 4, 6):
        (n, a, p), (k, b, q) = kernels.batch_norm_statistics(x[:cut]), kernels.batch_norm_statistics(x[cut:])
        merged = a + (b - a) * k / (n + k)
        merged_m2 = p + q + (b - a) ** 2 * n * k / (n + k)
        np.testing.assert_allclose(merged, mean, rtol=1e-13)
        np.testing.assert_allclose(merged_m2, m2, rtol=1e-13)
        whole, halves = (
            kernels.batch_norm_apply(x, gamma, beta, center, 1 / np.sqrt(spread / (n + k) + 1e-5))
            for center, spread in ((mean, m2), (merged, merged_m2))
        )
        np.testing.assert_array_equal(halves, whole)
