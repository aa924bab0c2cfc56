"""Optimizer steps, in place on flat float32 arrays, with the arithmetic of ``torch.optim``."""

from __future__ import annotations

from . import _core
from .arguments import number, whole
from .arrays import Array


def sgd_step(
    value: Array,
    grad: Array,
    velocity: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step of ``torch.optim.SGD`` on ``value``; ``grad`` is not changed.

    ``g = grad + weight_decay value``; ``velocity = momentum velocity + (1 - dampening) g``; ``value -= lr velocity``,
    or with ``nesterov`` ``lr (g + momentum velocity)``. ``velocity`` may be None where momentum is 0. Torch's first
    step takes ``g`` whole: start with a velocity of zeros and ``dampening=0`` for that step.
    """
    given = (("lr", lr), ("momentum", momentum), ("dampening", dampening), ("weight_decay", weight_decay))
    lr, momentum, dampening, weight_decay = (number("sgd_step", name, each) for name, each in given)
    _core.sgd_step(value, grad, velocity, lr, momentum, dampening, nesterov, weight_decay)


def adam_step(
    value: Array,
    grad: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    step: int,
) -> None:
    """One step of ``torch.optim.Adam`` (Kingma and Ba 2015), or of ``AdamW`` where ``decoupled``, on ``value``.

    ``m`` and ``v`` start as zeros; ``step`` counts from 1. ``grad`` is not changed.
    """
    given = (("lr", lr), ("beta1", beta1), ("beta2", beta2), ("eps", eps), ("weight_decay", weight_decay))
    lr, beta1, beta2, eps, weight_decay = (number("adam_step", name, each) for name, each in given)
    step = whole("adam_step", "step", step, 1, 2**62)
    _core.adam_step(value, grad, m, v, lr, beta1, beta2, eps, weight_decay, decoupled, step)
