"""Batch normalisation (Ioffe and Szegedy 2015; S0 eqs. 6 and 7), over the batch of this rank or of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array, empty_beside, to_place, zeros_beside
from ..kernels.collective import merge_statistics_of
from .initialise import Initializer, constant
from .layer import Context, Layer, Moments, ParameterSpec, Shape, Statistics, image_shape

Joint: TypeAlias = tuple[int, Moments, Moments]


@dataclass(frozen=True)
class _Fixed:
    """What backward needs of a pass with running statistics."""

    x: Array
    y: Array | None


class BatchNorm2d(Layer):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, as ``torch.nn.BatchNorm2d``.

    While training, mean and (biased) variance are those of the batch, and the running ones move by ``momentum`` towards
    it (None: their plain average), the variance unbiased; otherwise the running ones are used. With
    ``context.statistics`` the batch is that of all ranks and micro-batches: results and gradients are those of one rank
    holding it all, and a rank without samples takes part. ``residual`` adds a second input to the result and ``relu``
    then clips it, in the same pass; ``Graph.fuse`` sets both. A frozen one uses and keeps its running statistics also
    while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        relu: bool = False,
        residual: bool = False,
        init: Mapping[str, Initializer] | None = None,
    ) -> None:
        self.channels, self.eps, self.momentum, self.relu, self.residual = channels, eps, momentum, relu, residual
        super().__init__(init)
        self.keeps_output = relu

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        shape = (self.channels,)
        return {"weight": ParameterSpec(shape, constant(1.0)), "bias": ParameterSpec(shape, constant(0.0))}

    def buffer_specs(self) -> dict[str, NDArray[Any]]:
        return {
            "running_mean": np.zeros(self.channels, np.float32),
            "running_var": np.ones(self.channels, np.float32),
            "num_batches_tracked": np.zeros((), np.int64),
        }

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        x = xs[0]
        residual = xs[1] if self.residual else None
        gamma, beta = self.p["weight"], self.p["bias"]
        if not context.train or self.frozen:
            y = K.batch_norm_inference(
                x, gamma, beta, self.b["running_mean"], self.b["running_var"],
                eps=self.eps, relu=self.relu, residual=residual, out=x if overwrite else None,
            )  # fmt: skip
            return y, _Fixed(x, y if self.relu else None)
        joint = self.forward_meet([xs], context) if self.meets(context) else self._own_moments(x, context)
        return self.forward_after(xs, joint, context)

    def meets(self, context: Context) -> bool:
        return context.train and context.statistics is not None and not self.frozen

    def _own_moments(self, x: Array, context: Context) -> Joint:
        """Count, mean and sum of squared deviations per channel of the samples at hand alone."""
        moments = self._moments(x, context)
        self._track(*moments)
        return moments

    def _moments(self, x: Array, context: Context) -> Joint:
        """The same, from the convolution before where it has taken them on its way."""
        noted = context.noted_moments(x)
        return K.batch_norm_statistics(x) if noted is None else (x.size // self.channels, *noted)

    def forward_meet(self, batches: Sequence[Sequence[Array]], context: Context) -> Joint:
        """Count, mean and sum of squared deviations of the batch of all micro-batches and ranks, per channel."""
        assert context.statistics is not None
        pieces = [piece for xs in batches for piece in self._pieces(xs[0])]
        rows = np.empty((len(pieces), 1 + 2 * self.channels))
        for row, piece in zip(rows, pieces, strict=True):
            count, *moments = self._moments(piece, context)  # ranks join them in host memory
            row[0], row[1 : 1 + self.channels], row[1 + self.channels :] = count, *map(K.to_host, moments)
        if self.exact is not None:
            joined = context.statistics.merge_parts(rows)
        elif len(rows) == 1:
            row = rows[0]
            joined = context.statistics.merge(int(row[0]), row[1 : 1 + self.channels], row[1 + self.channels :])
        else:
            mean, m2 = np.empty(self.channels), np.empty(self.channels)
            count = int(merge_statistics_of(rows, mean, m2))
            joined = context.statistics.merge(count, mean, m2)
        count, mean, m2 = joined
        joint = count, to_place(mean, batches[0][0]), to_place(m2, batches[0][0])
        self._track(*joint)
        return joint

    def _pieces(self, x: Array) -> list[Array]:
        """The parts of exact sums, or all in one."""
        return [x] if self.exact is None else [x[part] for part in self.exact.parts(len(x))]

    def forward_after(self, xs: Sequence[Array], joint: Joint, context: Context) -> tuple[Array, Any]:
        x, residual = xs[0], xs[1] if self.residual else None
        count, mean, m2 = joint
        rstd = K.batch_norm_deviation(m2, count, eps=self.eps)
        y = K.batch_norm_apply(x, self.p["weight"], self.p["bias"], mean, rstd, relu=self.relu, residual=residual)
        # without a residual, backward computes the ReLU's mask again from x: one array less to read
        return y, (x, y if self.relu and self.residual else None, mean, rstd, count, context.statistics)

    def _again(self) -> dict[str, Array]:
        """What backward computes the ReLU's mask from where the output is not kept for it."""
        return {"beta": self.p["bias"]} if self.relu and not self.residual else {}

    def joins(self, saved: Any) -> bool:
        return isinstance(saved, tuple) and saved[-1] is not None and self.exact is None

    def start_backward_meet(self, batches: Sequence[tuple[Array, Any]]) -> Callable[[], Moments]:
        """Sums of ``dy`` and ``dy * xhat`` per channel over all micro-batches and ranks; adds this rank's to ``g``."""
        rows = []
        for dy, (x, y, mean, rstd, _, _) in batches:
            masks = [None] * len(self._pieces(x)) if y is None else self._pieces(y)
            for pieces in zip(self._pieces(dy), self._pieces(x), masks, strict=True):
                sums = K.batch_norm_backward_reduce(
                    *pieces[:2], mean, rstd, pieces[2], self.p["weight"], **self._again()
                )
                rows.append(np.concatenate([K.to_host(part) for part in sums]))
        parts = np.array(rows).reshape(-1, 2 * self.channels)
        joint: Statistics = batches[0][1][-1]
        if self.exact is not None:
            for row in parts:
                self.exact.totals["bias"] += row[: self.channels].astype(np.float32)
                self.exact.totals["weight"] += row[self.channels :].astype(np.float32)
            return partial(joint.sum_parts, parts)
        total = parts[0] if len(parts) == 1 else parts.sum(0)
        self._add_sums(*np.split(total, 2))  # of this rank: the ranks' are added later
        return joint.start_sum(total)

    def _add_sums(self, sum_dy: Moments, sum_dy_xhat: Moments) -> None:
        for name, sums in (("bias", sum_dy), ("weight", sum_dy_xhat)):
            K.batch_norm_add_sums(to_place(sums, self.g[name]), self.g[name])

    def backward_after(
        self, dy: Array, saved: Any, joint: Moments, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        x, y, mean, rstd, count, _ = saved
        dresidual, out = self._places(dy, overwrite)
        sum_dy, sum_dy_xhat = (to_place(np.ascontiguousarray(part), dy) for part in np.split(joint, 2))
        dx = K.batch_norm_backward_apply(
            dy,
            x,
            self.p["weight"],
            mean,
            rstd,
            sum_dy,
            sum_dy_xhat,
            count,
            y,
            **self._again(),
            dresidual=dresidual,
            out=out,
        )
        return self._with_residual(dx, dy, dresidual)

    def _places(self, dy: Array, overwrite: bool) -> tuple[Array | None, Array | None]:
        """Where the residual's gradient goes (None: without a ReLU it is dy itself) and where dx may go."""
        dresidual = empty_beside(dy, dy.shape) if self.residual and self.relu else None
        return dresidual, dy if overwrite and (dresidual is not None or not self.residual) else None

    def _with_residual(self, dx: Array, dy: Array, dresidual: Array | None) -> tuple[Array | None, ...]:
        if self.residual:
            return dx, dy if dresidual is None else dresidual
        return (dx,)

    def _track(self, count: int, mean: Moments, m2: Moments) -> None:
        if count == 1:
            raise ValueError(f"{self.name}: 1 value per channel, expected more for batch statistics")
        if count == 0:
            return
        self.b["num_batches_tracked"] += 1
        rate = self.momentum if self.momentum is not None else 1.0 / float(self.b["num_batches_tracked"])
        K.batch_norm_track(
            mean, m2, count, rate=rate, running_mean=self.b["running_mean"], running_var=self.b["running_var"]
        )

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if isinstance(saved, _Fixed):
            return self._backward_fixed(dy, saved)
        if saved[-1] is not None:
            return self.backward_after(dy, saved, self.backward_meet([(dy, saved)]), overwrite)
        x, y, mean, rstd, _, _ = saved
        dresidual, out = self._places(dy, overwrite)
        grads = self.g if self.exact is None else {}
        dx, dgamma, dbeta = K.batch_norm_backward(
            dy, x, self.p["weight"], mean, rstd, y=y, **self._again(), dgamma=grads.get("weight"),
            dbeta=grads.get("bias"), dresidual=dresidual, out=out,
        )  # fmt: skip
        if self.exact is not None:
            self.exact.totals["weight"] += dgamma
            self.exact.totals["bias"] += dbeta
        return self._with_residual(dx, dy, dresidual)

    def _backward_fixed(self, dy: Array, saved: _Fixed) -> tuple[Array | None, ...]:
        """With running statistics the layer is a scale and a shift per channel."""
        x, y = saved.x, saved.y
        mean, rstd = K.batch_norm_from_running(self.b["running_mean"], self.b["running_var"], eps=self.eps)
        if not self.frozen:
            sum_dy, sum_dy_xhat = K.batch_norm_backward_reduce(dy, x, mean, rstd, y)
            self._add_sums(sum_dy, sum_dy_xhat)
        dresidual = empty_beside(dy, dy.shape) if self.residual and self.relu else None
        none = zeros_beside(
            dy, (self.channels,), np.float64
        )  # statistics that do not depend on x send nothing back through them
        dx = K.batch_norm_backward_apply(dy, x, self.p["weight"], mean, rstd, none, none, 1, y, dresidual=dresidual)
        if self.residual:
            return dx, dy if dresidual is None else dresidual
        return (dx,)

    def output_shape(self, *shapes: Shape) -> Shape:
        image_shape(self, shapes[0], self.channels)
        if len(shapes) != 1 + self.residual:
            raise ValueError(f"{self.name}: {len(shapes)} inputs, expected {1 + self.residual}")
        if self.residual and shapes[1] != shapes[0]:
            raise ValueError(f"{self.name}: residual has shape {shapes[1]}, expected {shapes[0]}")
        return shapes[0]

    def can_overwrite(self, train: bool) -> bool:
        return not train

    def describe(self) -> str:
        return f"{self.channels}" + (", + residual" if self.residual else "") + (", relu" if self.relu else "")
