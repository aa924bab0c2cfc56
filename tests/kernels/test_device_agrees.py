"""What a network calls, on shapes as networks have them: a device agrees with the CPU, and always gives the same bits,
whatever the order in which its blocks and threads run."""

from __future__ import annotations

import os

import numpy as np
import pytest

from medmpi import kernels as K
from tests.kernels.staged import why_no_device

pytestmark = pytest.mark.skipif(bool(why_no_device()), reason=why_no_device())

# n, h, w, c: of CIFAR and ImageNet ResNets, of a U-Net with few channels, of a classifier's end
SHAPES = [(2, 32, 32, 64), (1, 56, 56, 64), (2, 8, 8, 256), (4, 7, 7, 512), (1, 64, 64, 16), (2, 33, 31, 3)]


def results(shape, place):
    """Every array that a step makes here; ``place`` brings an array where it is computed."""
    n, h, w, c = shape
    rng = np.random.default_rng(sum(shape))

    def normal(*size, mean=0.0):
        return place((rng.standard_normal(size) + mean).astype(np.float32))

    x, dy, residual = normal(*shape, mean=2.0), normal(*shape), normal(*shape)
    gamma, beta = normal(c, mean=1.0), normal(c)
    dgamma, dbeta = place(np.zeros(c, np.float32)), place(np.zeros(c, np.float32))
    y, mean, rstd = K.batch_norm(x, gamma, beta, relu=True)
    yield "batch_norm", y
    yield "mean", mean
    yield "rstd", rstd
    yield "residual", K.batch_norm(x, gamma, beta, relu=True, residual=residual)[0]
    yield (
        "batch_norm_backward",
        K.batch_norm_backward(dy, x, gamma, mean, rstd, beta=beta, dgamma=dgamma, dbeta=dbeta)[0],
    )
    yield "dgamma", dgamma
    yield "dbeta", dbeta
    pooled, indices = K.max_pool2d(y, 3, stride=2, padding=1)
    yield "max_pool", pooled
    yield "max_pool_backward", K.max_pool2d_backward(pooled, indices, x_shape=shape)
    yield "global", K.global_avg_pool2d(y)
    yield "avg_pool", K.avg_pool2d(y, 2)
    yield "add", K.add(y, residual, relu=True)
    yield "concat", K.concat([y, residual])
    yield "dropout", K.dropout(y, 0.3, seed=11, offset=77)
    yield "resize", K.resize(y, (2 * h, 2 * w), mode="bilinear")
    labels = place(rng.integers(0, c, (n, h, w)))
    loss, dlogits = K.softmax_cross_entropy(x, labels)
    yield "loss", loss
    yield "dlogits", dlogits
    loss, dlogits = K.dice_loss(x, labels)
    yield "dice", loss
    yield "ddice", dlogits
    size = n * h * w * c
    value, grad, m, v = normal(size), normal(size), *(place(np.zeros(size, np.float32)) for _ in range(2))
    K.adam_step(value, grad, m, v, lr=1e-3, step=3)
    yield "adam", value
    K.sgd_step(value, grad, m, lr=0.1, momentum=0.9)
    yield "sgd", value
    yield "sum_squares", K.sum_squares(value)
    yield "nchw", K.nhwc_to_nchw(x)


def host(value):
    return np.asarray(K.to_host(value) if isinstance(value, K.DeviceArray) else value)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_cpu(shape):
    for (name, want), (_, got) in zip(results(shape, lambda a: a), results(shape, K.to_device), strict=True):
        want, got = np.asarray(want), host(got)
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=5e-6 * max(1.0, np.abs(want).max()), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES[-2:])
def test_order_does_not_matter(shape, monkeypatch):
    runs = []
    for order in ("reverse", "forward", "shuffle"):
        monkeypatch.setitem(os.environ, "MEDMPI_EMULATE_ORDER", order)  # a real device has an order of its own
        runs.append([(name, host(value).copy()) for name, value in results(shape, K.to_device)])
    for other in runs[1:]:
        for (name, a), (_, b) in zip(runs[0], other, strict=True):
            assert a.tobytes() == b.tobytes(), name
