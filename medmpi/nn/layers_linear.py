"""Matrices and the step from images to vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .initialise import Initializer, fan_uniform
from .layer import Context, Layer, ParameterSpec, Shape


class Linear(Layer):
    """``x @ weight + bias`` on (N, in); weight is (in, out).

    ``flattened=(h, w, c)`` says that the input is an image flattened in this order: torch flattens (c, h, w), so its
    weights are permuted on the way to and from torch's layout.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        flattened: tuple[int, int, int] | None = None,
        init: Mapping[str, Initializer] | None = None,
    ) -> None:
        if flattened is not None and prod(flattened) != in_features:
            raise ValueError(f"Linear: flattened is {flattened}, expected a product of {in_features}")
        self.in_features, self.out_features, self.bias, self.flattened = in_features, out_features, bias, flattened
        super().__init__(init)

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        fans = self.in_features, self.out_features
        specs = {"weight": ParameterSpec((self.in_features, self.out_features), fan_uniform, *fans)}
        if self.bias:
            specs["bias"] = ParameterSpec((self.out_features,), fan_uniform, *fans)
        return specs

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return K.linear(x, self.p["weight"], self.p.get("bias")), x

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        self.add_gradient("weight", K.linear_backward_weight, dy, saved)
        if self.bias:
            self.add_gradient("bias", K.linear_backward_bias, dy)
        return (K.linear_backward_data(dy, self.p["weight"]) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 2 or shape[1] != self.in_features:
            raise ValueError(f"{self.name}: x has shape {shape}, expected (N, {self.in_features})")
        return shape[0], self.out_features

    def macs(self, *shapes: Shape) -> int:
        return shapes[0][0] * self.in_features * self.out_features

    def to_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name != "weight":
            return value
        rows = value.T
        if self.flattened is not None:
            rows = rows.reshape(self.out_features, *self.flattened).transpose(0, 3, 1, 2)
        return rows.reshape(self.out_features, self.in_features)

    def from_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name != "weight":
            return value
        if self.flattened is not None:
            h, w, c = self.flattened
            value = value.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(-1, self.in_features)
        return value.T

    def describe(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Flatten(Layer):
    """(N, ...) as (N, features), in the order (H, W, C); a view."""

    aliases = True

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return x.reshape(x.shape[0], prod(x.shape[1:])), x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (dy.reshape(saved) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return shape[0], prod(shape[1:])
