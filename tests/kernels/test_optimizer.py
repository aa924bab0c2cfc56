"""Optimizer steps against the formulas in float64 and against torch.optim."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02},
    {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
]
ADAM = [
    {"lr": 1e-2},
    {"lr": 1e-2, "weight_decay": 0.1},
    {"lr": 1e-2, "weight_decay": 0.1, "decoupled": True},
    {"lr": 3e-3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
]


def flat(n, offset=0):
    """An uninitialised array that begins `offset` values past an aligned address."""
    return np.empty(n + 16, np.float32)[offset : offset + n]


def numbers(rng, n, offset=0):
    array = flat(n, offset)
    array[:] = rng.standard_normal(n)
    return array


def reference_sgd(value, grad, velocity, *, lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    grad = grad + weight_decay * value
    if momentum:
        velocity[:] = momentum * velocity + (1 - dampening) * grad
        grad = grad + momentum * velocity if nesterov else velocity
    value -= lr * grad


def reference_adam(value, grad, m, v, *, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=False):
    if decoupled:
        value *= 1 - lr * weight_decay
    else:
        grad = grad + weight_decay * value
    m[:] = beta1 * m + (1 - beta1) * grad
    v[:] = beta2 * v + (1 - beta2) * grad**2
    value -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


@pytest.mark.parametrize("options", SGD)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (1000, 3), (40001, 1)])
def test_sgd(rng, options, n, offset):
    value, velocity = numbers(rng, n, offset), numbers(rng, n, offset + 5)
    want, want_velocity = value.astype(np.float64), velocity.astype(np.float64)
    for _ in range(3):
        grad = numbers(rng, n, offset + 2)
        before = grad.copy()
        kernels.sgd_step(value, grad, velocity, **options)
        reference_sgd(want, grad.astype(np.float64), want_velocity, **options)
        np.testing.assert_array_equal(grad, before)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(velocity, want_velocity, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", ADAM)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (1000, 3), (40001, 1)])
def test_adam(rng, options, n, offset):
    value, m, v = numbers(rng, n, offset), flat(n, 1), flat(n, 7)
    m[:] = v[:] = 0
    want, want_m, want_v = (a.astype(np.float64) for a in (value, m, v))
    for step in range(1, 5):
        grad = numbers(rng, n, offset)
        kernels.adam_step(value, grad, m, v, step=step, **options)
        reference_adam(want, grad.astype(np.float64), want_m, want_v, step=step, **options)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(m, want_m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(v, want_v, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", SGD)
def test_sgd_steps_as_torch_does(rng, options):
    torch = pytest.importorskip("torch")
    value, velocity = numbers(rng, 500), np.zeros(500, np.float32)
    leaf = torch.nn.Parameter(torch.tensor(value))
    theirs = torch.optim.SGD([leaf], **options)
    for step in range(6):
        grad = numbers(rng, 500)
        leaf.grad = torch.tensor(grad)
        theirs.step()
        kernels.sgd_step(value, grad, velocity, **(options if step else options | {"dampening": 0.0}))
    np.testing.assert_allclose(value, leaf.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", ADAM)
def test_adam_steps_as_torch_does(rng, options):
    torch = pytest.importorskip("torch")
    value, m, v = numbers(rng, 500), np.zeros(500, np.float32), np.zeros(500, np.float32)
    leaf = torch.nn.Parameter(torch.tensor(value))
    make = torch.optim.AdamW if options.get("decoupled") else torch.optim.Adam
    betas = options.get("beta1", 0.9), options.get("beta2", 0.999)
    same = {name: value for name, value in options.items() if name in ("lr", "eps", "weight_decay")}
    theirs = make([leaf], betas=betas, **({"weight_decay": 0.0} | same))
    for step in range(1, 30):
        grad = numbers(rng, 500)
        leaf.grad = torch.tensor(grad)
        theirs.step()
        kernels.adam_step(value, grad, m, v, step=step, **options)
    np.testing.assert_allclose(value, leaf.detach().numpy(), rtol=1e-5, atol=2e-6)


def test_threads_change_no_bit(rng, with_threads):
    start, grad = numbers(rng, 100_003), numbers(rng, 100_003)

    def run():
        value, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        kernels.adam_step(value, grad, m, v, lr=0.1, step=1)
        kernels.sgd_step(value, grad, m, lr=0.1, momentum=0.9)
        return value

    np.testing.assert_array_equal(with_threads(1, run), with_threads(3, run))


def test_no_parameters_and_no_velocity():
    empty = np.empty(0, np.float32)
    kernels.sgd_step(empty, empty, None, lr=0.1)
    kernels.adam_step(empty, empty, empty, empty, lr=0.1, step=1)
    value = np.ones(3, np.float32)
    kernels.sgd_step(value, np.ones(3, np.float32), None, lr=0.25)
    np.testing.assert_array_equal(value, 0.75)


def test_errors():
    a, b, c, d = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="sgd_step: value has 7 values, expected 8"):
        kernels.sgd_step(a[:7], b, None, lr=0.1)
    with pytest.raises(ValueError, match="sgd_step: velocity is None, expected an array where momentum is not 0"):
        kernels.sgd_step(a, b, None, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="sgd_step: lr is nan.*, expected a finite number >= 0"):  # noqa: RUF043
        kernels.sgd_step(a, b, None, lr=float("nan"))
    with pytest.raises(ValueError, match="sgd_step: nesterov needs momentum above 0 and dampening 0"):
        kernels.sgd_step(a, b, c, lr=0.1, momentum=0.9, dampening=0.5, nesterov=True)
    with pytest.raises(ValueError, match="sgd_step: velocity overlaps value"):
        kernels.sgd_step(a, b, a, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"adam_step: beta2 is 1.0*, expected 0 <= beta2 < 1"):
        kernels.adam_step(a, b, c, d, lr=0.1, beta2=1.0, step=1)
    with pytest.raises(ValueError, match="adam_step: step is 0, expected 1 or more"):
        kernels.adam_step(a, b, c, d, lr=0.1, step=0)
    with pytest.raises(TypeError, match="adam_step: m has dtype float64, expected float32"):
        kernels.adam_step(a, b, c.astype(np.float64), d, lr=0.1, step=1)
