"""Optimizers: one kernel over the flat parameters (S0 eq. 8 and its usual refinements), with torch's numerics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite, sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array, zeros_beside
from .parameters import Parameters


class Optimizer:
    """Moves ``parameters.value`` along ``parameters.grad``; ``lr`` may be set before every step."""

    slots: tuple[str, ...] = ()
    """Names of the flat arrays like ``parameters.value`` that it keeps; each is an attribute."""

    def __init__(self, parameters: Parameters, lr: float) -> None:
        if not (isfinite(lr) and lr >= 0):
            raise ValueError(f"{type(self).__name__}: lr is {lr}, expected a finite number >= 0")
        self.parameters, self.lr, self.steps = parameters, lr, 0
        self._rates: list[tuple[slice, float]] = [(slice(None), 1.0)]

    def scale_rates(self, factors: Mapping[str, float]) -> None:
        """Layer-wise rates: the layer of each node named trains with ``lr`` times its factor, the others with ``lr``.

        ValueError for a name without trained parameters or a factor that is not a finite number >= 0.
        """
        slices = self.parameters.slices
        for name, factor in factors.items():
            if name not in slices or not (isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"{type(self).__name__}: rate of {name!r} times {factor}, expected a node with trained parameters"
                    " and a finite factor >= 0"
                )
        rates: list[tuple[slice, float]] = []
        for name, part in sorted(slices.items(), key=lambda item: item[1].start):
            factor = factors.get(name, 1.0)
            if part.stop == part.start:
                continue
            if rates and rates[-1][1] == factor and rates[-1][0].stop == part.start:
                part = slice(rates.pop()[0].start, part.stop)
            rates.append((part, factor))
        self._rates = rates

    def step(self, part: slice = slice(None)) -> None:
        """One step with the gradients as they are; gradients are left alone.

        ``part`` of the flat arrays alone where others update the rest of them: ranks that share one copy.
        """
        raise NotImplementedError

    def _rates_in(self, part: slice) -> Iterator[tuple[slice, float]]:
        """The runs of elements of ``part`` with the same rate, and the rate's factor."""
        start, stop, _ = part.indices(self.parameters.value.size)
        for run, factor in self._rates:
            first, last, _ = run.indices(self.parameters.value.size)
            if max(first, start) < min(last, stop):
                yield slice(max(first, start), min(last, stop)), factor

    def move(self, place: Callable[[Array], Array]) -> None:
        """Its flat arrays become what ``place`` makes of them: arrays of the same size elsewhere."""
        for slot in self.slots:
            setattr(self, slot, place(getattr(self, slot)))

    def _slot(self) -> Array:
        return zeros_beside(self.parameters.value, self.parameters.value.shape)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """``step`` and, for each slot and parameter, ``slot.parameter`` in the kernels' layout: views of its arrays.

        Named by parameter, so that the states of a split model's stages add up to the whole model's.
        """
        state: dict[str, NDArray[Any]] = {"step": np.array(self.steps, np.int64)}
        for slot in self.slots:
            for name in self.parameters.names():
                state[f"{slot}.{name}"] = self.parameters.view(getattr(self, slot), name)
        return state

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores ``state_dict()``, also that of a larger model that holds these parameters.

        ValueError where an array is missing or has another shape; nothing is changed then.
        """
        want = self.state_dict()
        kind = type(self).__name__
        missing = sorted(want.keys() - state.keys())
        if missing:
            raise ValueError(f"{kind}: state lacks {_some(missing)}, expected those of this optimizer and model")
        for name, mine in want.items():
            if state[name].shape != mine.shape:
                raise ValueError(f"{kind}: {name} has shape {state[name].shape}, expected {mine.shape}")
        for name, mine in want.items():
            mine[...] = np.ascontiguousarray(state[name])
        self.steps = int(state["step"])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class SGD(Optimizer):
    """Gradient descent with momentum, as ``torch.optim.SGD``; weight decay is added to the gradient."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        if not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                f"SGD: momentum is {momentum}, weight_decay {weight_decay}, expected 0 <= momentum < 1 and decay >= 0"
            )
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("SGD: nesterov is set, expected a momentum and no dampening with it")
        self.momentum, self.dampening, self.nesterov, self.weight_decay = momentum, dampening, nesterov, weight_decay
        self.momentum_buffer = self._slot() if momentum else None
        self.slots = ("momentum_buffer",) if momentum else ()

    def step(self, part: slice = slice(None)) -> None:
        value, grad, buffer = self.parameters.value, self.parameters.grad, self.momentum_buffer
        for run, factor in self._rates_in(part):
            K.sgd_step(
                value[run], grad[run], None if buffer is None else buffer[run], lr=self.lr * factor,
                momentum=self.momentum,
                dampening=self.dampening if self.steps else 0.0,  # the buffer starts as the first gradient itself
                nesterov=self.nesterov, weight_decay=self.weight_decay,
            )  # fmt: skip
        self.steps += 1


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), as ``torch.optim.Adam``; weight decay is added to the gradient."""

    slots = ("exp_avg", "exp_avg_sq")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        if not all(0 <= beta < 1 for beta in betas) or eps <= 0 or weight_decay < 0:
            raise ValueError(
                f"{type(self).__name__}: betas are {betas}, eps {eps}, weight_decay {weight_decay}, expected"
                " 0 <= beta < 1, eps > 0, weight_decay >= 0"
            )
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.exp_avg, self.exp_avg_sq = self._slot(), self._slot()

    def step(self, part: slice = slice(None)) -> None:
        self.steps += 1
        value, grad = self.parameters.value, self.parameters.grad
        for run, factor in self._rates_in(part):
            K.adam_step(
                value[run], grad[run], self.exp_avg[run], self.exp_avg_sq[run], lr=self.lr * factor,
                beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, weight_decay=self.weight_decay,
                decoupled=self.decoupled, step=self.steps,
            )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as ``torch.optim.AdamW``."""

    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def gradient_norm(parameters: Parameters) -> float:
    """The Euclidean norm of all gradients, summed in float64. It is not finite where a gradient is not."""
    return sqrt(K.sum_squares(parameters.grad))


def clip_gradients(parameters: Parameters, limit: float, *, norm: float | None = None) -> float:
    """Scales all gradients so that their norm is at most ``limit``; returns the norm before.

    ``norm`` is given where these parameters are a part of a model: the norm over all of it. As
    ``torch.nn.utils.clip_grad_norm_``. A norm that is not finite leaves the gradients alone, for the caller to report.
    """
    if not limit > 0:
        raise ValueError(f"clip_gradients: limit is {limit}, expected a number above 0")
    norm = gradient_norm(parameters) if norm is None else norm
    if isfinite(norm) and norm > limit:
        K.scale_(parameters.grad, limit / (norm + 1e-6))
    return norm
