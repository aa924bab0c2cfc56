"""Optimizers and clipping against torch over 20 steps, and their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from twin import close, images, network

from medmpi import nn

CASES: dict[str, tuple[Callable[[nn.Parameters], nn.Optimizer], str, dict[str, Any]]] = {
    "sgd": (lambda p: nn.SGD(p, lr=0.1), "SGD", {"lr": 0.1}),
    "sgd-decay": (lambda p: nn.SGD(p, lr=0.1, weight_decay=0.05), "SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "momentum": (
        lambda p: nn.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
    ),
    "dampening": (
        lambda p: nn.SGD(p, lr=0.1, momentum=0.8, dampening=0.4),
        "SGD",
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.4},
    ),
    "nesterov": (
        lambda p: nn.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    ),
    "adam": (lambda p: nn.Adam(p, lr=1e-2), "Adam", {"lr": 1e-2}),
    "adam-decay": (
        lambda p: nn.Adam(p, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        "Adam",
        {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": (lambda p: nn.AdamW(p, lr=1e-2, weight_decay=0.1), "AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-default": (lambda p: nn.AdamW(p), "AdamW", {}),
}


def _fill(parameters: nn.Parameters, rng: np.random.Generator) -> None:
    for _, gradient in parameters.named_gradients():
        gradient[...] = images(rng, *gradient.shape)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the optimizers")
    make, kind, options = CASES[name]
    parameters = nn.Parameters(network(), seed=1)
    optimizer = make(parameters)
    twins = {key: torch.tensor(value, requires_grad=True) for key, value in parameters.named()}
    twin = getattr(torch.optim, kind)(list(twins.values()), **options)
    rng = np.random.default_rng(0)
    for i in range(20):
        _fill(parameters, rng)
        before = parameters.grad.copy()
        for key, gradient in parameters.named_gradients():
            twins[key].grad = torch.tensor(gradient)
        optimizer.lr = twin.param_groups[0]["lr"] = options.get("lr", 1e-3) / (1 + 0.1 * i)
        optimizer.step()
        twin.step()
        np.testing.assert_array_equal(parameters.grad, before)
    for key, value in parameters.named():
        close(value, twins[key].detach().numpy(), 2e-6)
    assert optimizer.steps == 20


@pytest.mark.parametrize("name", CASES)
def test_state_resumes(name: str) -> None:
    make, _, _ = CASES[name]
    whole, resumed = nn.Parameters(network(), seed=1), nn.Parameters(network().fuse(), seed=9)
    first, second = make(whole), make(resumed)
    rng = np.random.default_rng(0)
    for _ in range(3):
        _fill(whole, rng)
        first.step()
    second.load_state_dict({key: value.copy() for key, value in first.state_dict().items()})
    values, gradients = dict(resumed.named()), dict(resumed.named_gradients())
    for key, value in whole.named():
        values[key][...] = value
    assert second.steps == 3
    for _ in range(2):
        _fill(whole, rng)
        for key, gradient in whole.named_gradients():
            gradients[key][...] = gradient
        first.step()
        second.step()
    for key, value in whole.named():
        np.testing.assert_array_equal(values[key], value)


def test_states_of_stages_make_the_models() -> None:
    rng = np.random.default_rng(0)
    whole = nn.Adam(nn.Parameters(network(), seed=1))
    _fill(whole.parameters, rng)
    whole.step()
    state = whole.state_dict()
    together: dict[str, Any] = {}
    for stage in network().split([5, 9]):
        part = nn.Adam(nn.Parameters(stage))
        part.load_state_dict(state)
        together.update(part.state_dict())
    assert together.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(together[key], value)


def test_states_that_do_not_fit_change_nothing() -> None:
    optimizer = nn.SGD(nn.Parameters(network()), lr=0.1, momentum=0.9)
    assert optimizer.momentum_buffer is not None
    optimizer.momentum_buffer += 1
    state = {key: np.zeros_like(value) for key, value in optimizer.state_dict().items()}
    lacking = {key: value for key, value in state.items() if "conv2" not in key}
    with pytest.raises(
        ValueError, match=r"SGD: state lacks momentum_buffer\.conv2\.bias, momentum_buffer\.conv2\.weight"
    ):
        optimizer.load_state_dict(lacking)
    with pytest.raises(ValueError, match=r"momentum_buffer\.fc2\.bias has shape \(4,\), expected \(3,\)"):
        optimizer.load_state_dict({**state, "momentum_buffer.fc2.bias": np.zeros(4, np.float32)})
    assert (optimizer.momentum_buffer == 1).all()


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_equals_torch(limit: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of clipping")
    parameters = nn.Parameters(network())
    _fill(parameters, np.random.default_rng(0))
    twins = []
    for _, gradient in parameters.named_gradients():
        twins.append(torch.zeros(gradient.shape, requires_grad=True))
        twins[-1].grad = torch.tensor(gradient)
    expected = torch.nn.utils.clip_grad_norm_(twins, limit)
    assert nn.clip_gradients(parameters, limit) == pytest.approx(expected.item(), rel=1e-6)
    for (_, gradient), twin in zip(parameters.named_gradients(), twins, strict=True):
        close(gradient, twin.grad.numpy(), 1e-6)


def test_clipping_a_part_of_a_model_and_broken_gradients() -> None:
    parameters = nn.Parameters(network())
    parameters.grad.fill(1)
    nn.clip_gradients(parameters, 1.0, norm=10.0)
    np.testing.assert_allclose(parameters.grad, 0.1, rtol=1e-5)
    parameters.grad[3] = np.nan
    assert np.isnan(nn.clip_gradients(parameters, 1e-3))
    np.testing.assert_allclose(parameters.grad[4:], 0.1, rtol=1e-5)
    with pytest.raises(ValueError, match="limit is 0"):
        nn.clip_gradients(parameters, 0)


def test_wrong_arguments_are_named() -> None:
    parameters = nn.Parameters(network())
    with pytest.raises(ValueError, match="SGD: lr is nan"):
        nn.SGD(parameters, lr=float("nan"))
    with pytest.raises(ValueError, match="SGD: momentum is 1"):
        nn.SGD(parameters, lr=0.1, momentum=1.0)
    with pytest.raises(ValueError, match="nesterov"):
        nn.SGD(parameters, lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="AdamW: betas are"):
        nn.AdamW(parameters, betas=(0.9, 1.0))
