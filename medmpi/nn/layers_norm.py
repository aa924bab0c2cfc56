"""Batch normalisation (Ioffe and Szegedy 2015; S0 eqs. 6 and 7), over the batch of this rank or of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .initialise import Initializer, constant
from .layer import Context, Layer, Moments, ParameterSpec, Shape, Statistics, image_shape


@dataclass(frozen=True)
class _Fixed:
    """What backward needs of a pass with running statistics."""

    x: Array
    y: Array | None


class BatchNorm2d(Layer):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, as ``torch.nn.BatchNorm2d``.

    While training, mean and (biased) variance are those of the batch, and the running ones move by ``momentum`` towards
    it (None: their plain average), the variance unbiased; otherwise the running ones are used. With
    ``context.statistics`` the batch is that of all ranks: results and gradients are those of one rank holding it all,
    and a rank without samples takes part. ``residual`` adds a second input to the result and ``relu`` then clips it,
    in the same pass; ``Graph.fuse`` sets both. A frozen one uses and keeps its running statistics also while training.
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
        count, mean, m2 = self._moments(x, context.statistics)
        if count == 1:
            raise ValueError(f"{self.name}: 1 value per channel, expected more for batch statistics")
        if count > 0:
            self._track(count, mean, m2)
        rstd = 1.0 / np.sqrt(m2 / max(count, 1) + self.eps)
        y = K.batch_norm_apply(x, gamma, beta, mean, rstd, relu=self.relu, residual=residual)
        return y, (x, y if self.relu else None, mean, rstd, count, context.statistics)

    def _moments(self, x: Array, statistics: Statistics | None) -> tuple[int, Moments, Moments]:
        """Count, mean and sum of squared deviations of the batch, per channel."""
        if statistics is None:
            return K.batch_norm_statistics(x)
        if self.exact is None:
            return statistics.merge(*K.batch_norm_statistics(x))
        parts = np.empty((-(-len(x) // self.exact.samples), 1 + 2 * self.channels))
        for row, part in zip(parts, self.exact.parts(len(x)), strict=True):
            row[0], row[1 : 1 + self.channels], row[1 + self.channels :] = K.batch_norm_statistics(x[part])
        return statistics.merge_parts(parts)

    def _sums(self, dy: Array, x: Array, mean: Moments, rstd: Moments, y: Array | None, joint: Statistics) -> Moments:
        """Sums of ``dy`` and ``dy * xhat`` per channel over all ranks; adds this rank's to the gradients."""
        if self.exact is None:
            sum_dy, sum_dy_xhat = K.batch_norm_backward_reduce(dy, x, mean, rstd, y)
            self.g["bias"] += sum_dy.astype(np.float32)  # of this rank: the gradients of all ranks are added later
            self.g["weight"] += sum_dy_xhat.astype(np.float32)
            return joint.sum(np.concatenate((sum_dy, sum_dy_xhat)))
        totals = self.exact.totals
        parts = np.empty((-(-len(x) // self.exact.samples), 2 * self.channels))
        for row, part in zip(parts, self.exact.parts(len(x)), strict=True):
            sums = K.batch_norm_backward_reduce(dy[part], x[part], mean, rstd, None if y is None else y[part])
            row[: self.channels], row[self.channels :] = sums
            totals["bias"] += sums[0].astype(np.float32)
            totals["weight"] += sums[1].astype(np.float32)
        return joint.sum_parts(parts)

    def _track(self, count: int, mean: NDArray[np.float64], m2: NDArray[np.float64]) -> None:
        self.b["num_batches_tracked"] += 1
        rate = self.momentum if self.momentum is not None else 1.0 / float(self.b["num_batches_tracked"])
        for name, value in (("running_mean", mean), ("running_var", m2 / (count - 1))):
            running = self.b[name]
            running += (rate * (value - running)).astype(np.float32)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if isinstance(saved, _Fixed):
            return self._backward_fixed(dy, saved)
        x, y, mean, rstd, count, statistics = saved
        # without a ReLU the residual's gradient is dy itself
        dresidual = K.empty(dy.shape) if self.residual and self.relu else None
        out = dy if overwrite and (dresidual is not None or not self.residual) else None
        gamma = self.p["weight"]
        if statistics is None:
            grads = self.g if self.exact is None else {}
            dx, dgamma, dbeta = K.batch_norm_backward(
                dy,
                x,
                gamma,
                mean,
                rstd,
                y=y,
                dgamma=grads.get("weight"),
                dbeta=grads.get("bias"),
                dresidual=dresidual,
                out=out,
            )
            if self.exact is not None:
                self.exact.totals["weight"] += dgamma
                self.exact.totals["bias"] += dbeta
        else:
            sums = self._sums(dy, x, mean, rstd, y, statistics)
            sum_dy, sum_dy_xhat = (
                np.ascontiguousarray(sums[: self.channels]),
                np.ascontiguousarray(sums[self.channels :]),
            )
            dx = K.batch_norm_backward_apply(
                dy, x, gamma, mean, rstd, sum_dy, sum_dy_xhat, count, y, dresidual=dresidual, out=out
            )
        if self.residual:
            return dx, dy if dresidual is None else dresidual
        return (dx,)

    def _backward_fixed(self, dy: Array, saved: _Fixed) -> tuple[Array | None, ...]:
        """With running statistics the layer is a scale and a shift per channel."""
        x, y = saved.x, saved.y
        mean = self.b["running_mean"].astype(np.float64)
        rstd = 1.0 / np.sqrt(self.b["running_var"].astype(np.float64) + self.eps)
        if not self.frozen:
            sum_dy, sum_dy_xhat = K.batch_norm_backward_reduce(dy, x, mean, rstd, y)
            self.g["bias"] += sum_dy.astype(np.float32)
            self.g["weight"] += sum_dy_xhat.astype(np.float32)
        dresidual = K.empty(dy.shape) if self.residual and self.relu else None
        none = np.zeros(self.channels)  # statistics that do not depend on x send nothing back through them
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
