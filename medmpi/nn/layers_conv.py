"""Convolutions. Images are (N, H, W, C), filters (R, S, C/groups, K); torch's are (K, C/groups, R, S)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array, empty_beside
from .initialise import Initializer, fan_uniform
from .layer import Context, Layer, Padding, Pair, ParameterSpec, Shape, image_shape, pair, sides, window_size

_MANY_OUTPUTS = 1 << 18  # values from which a second-level cache holds no result until the next layer reads it


class _Convolution(Layer):
    """What both directions share: arguments, layouts and the bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
        bias: bool,
        init: Mapping[str, Initializer] | None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            kind = type(self).__name__
            raise ValueError(f"{kind}: groups is {groups}, expected a divisor of {in_channels} and {out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        self.padding, self.bias = sides(padding), bias
        super().__init__(init)

    def to_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return value.transpose(3, 2, 0, 1) if name == "weight" else value

    def from_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return value.transpose(2, 3, 1, 0) if name == "weight" else value

    def describe(self) -> str:
        r, s = self.kernel_size
        text = f"{self.in_channels}, {self.out_channels}, {r}x{s}"
        if self.stride != (1, 1):
            text += f", stride {self.stride[0]}x{self.stride[1]}"
        if self.dilation != (1, 1):
            text += f", dilation {self.dilation[0]}x{self.dilation[1]}"
        return text + (f", groups {self.groups}" if self.groups > 1 else "")


class Conv2d(_Convolution):
    """2-D cross-correlation with zero padding, as ``torch.nn.Conv2d`` (S0 eq. 4 up to the kernel's flip).

    ``relu`` clips the result in the same pass; with ``normalised``, for a batch normalisation that alone reads the
    result, large ones get their moments on the way. ``Graph.fuse`` sets both.
    """

    normalised = False
    adds_onto = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        relu: bool = False,
        init: Mapping[str, Initializer] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, init)
        self.relu = self.keeps_output = relu
        self.window: dict[str, Any] = {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": groups
        }  # fmt: skip

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        r, s = self.kernel_size
        fans = self.in_channels // self.groups * r * s, self.out_channels * r * s
        shape = (r, s, self.in_channels // self.groups, self.out_channels)
        specs = {"weight": ParameterSpec(shape, fan_uniform, *fans)}
        if self.bias:
            specs["bias"] = ParameterSpec((self.out_channels,), fan_uniform, *fans)
        return specs

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        moments = self._moments(x) if context.train else None
        y = K.conv2d(x, self.p["weight"], self.p.get("bias"), relu=self.relu, moments=moments, **self.window)
        if moments is not None:
            context.note_moments(y, *moments)
        return y, (x, y if self.relu else None)

    def _moments(self, x: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Places for the moments that the normalisation behind needs, where taking them in cache pays."""
        if not self.normalised or self.frozen or self.exact is not None:
            return None
        (sh, sw), k = self.stride, self.out_channels
        if x.size // (self.in_channels * sh * sw) * k < _MANY_OUTPUTS:
            return None
        return empty_beside(x, (k,), np.float64), empty_beside(x, (k,), np.float64)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        x, y = saved
        dy = self.before_relu(dy, y, overwrite)
        self.add_gradients(dy, x)
        return (self.input_gradient(dy, x.shape) if need_dx else None,)

    def backward_inputs(
        self, dy: Array, saved: Any, overwrite: bool = False, onto: tuple[Array, bool] | None = None
    ) -> tuple[tuple[Array | None, ...], Callable[[], None] | None]:
        x, y = saved
        dy = self.before_relu(dy, y, overwrite)
        return (self.input_gradient(dy, x.shape, onto),), partial(self.add_gradients, dy, x)

    def before_relu(self, dy: Array, y: Array | None, overwrite: bool) -> Array:
        """The gradient of the sums, from that of the result; ``y`` is kept by forward, None without a ReLU."""
        return dy if y is None else K.relu_backward(dy, y, out=dy if overwrite else None)

    def add_gradients(self, dy: Array, x: Array) -> None:
        """Adds to the parameters' gradients."""
        self.add_gradient("weight", K.conv2d_backward_weight, dy, x, weight_shape=self.p["weight"].shape, **self.window)
        if self.bias:
            self.add_gradient("bias", K.conv2d_backward_bias, dy)

    def input_gradient(self, dy: Array, x_shape: Shape, onto: tuple[Array, bool] | None = None) -> Array:
        """The gradient of the input, added to ``onto``, which may be overwritten or not."""
        add, reuse = onto or (None, False)
        out = add if reuse else None
        return K.conv2d_backward_data(dy, self.p["weight"], x_shape=x_shape, add=add, out=out, **self.window)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, h, w, _ = image_shape(self, shapes[0], self.in_channels)
        oh, ow = (
            window_size(self, *sizes)
            for sizes in zip((h, w), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return n, oh, ow, self.out_channels

    def describe(self) -> str:
        return super().describe() + (", relu" if self.relu else "")

    def macs(self, *shapes: Shape) -> int:
        n, h, w, k = self.output_shape(*shapes)
        r, s = self.kernel_size
        return n * h * w * k * r * s * (self.in_channels // self.groups)


class ConvTranspose2d(_Convolution):
    """The transpose of a convolution, as ``torch.nn.ConvTranspose2d``; weight is (R, S, out/groups, in)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Mapping[str, Initializer] | None = None,
    ) -> None:
        self.output_padding = pair(output_padding)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, init)
        self.window: dict[str, Any] = {
            "stride": self.stride, "padding": pair(padding), "output_padding": self.output_padding,
            "dilation": self.dilation, "groups": groups,
        }  # fmt: skip

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        r, s = self.kernel_size
        # torch takes the fans from the weight's stored shape, in which input and output are exchanged
        fans = self.out_channels // self.groups * r * s, self.in_channels * r * s
        shape = (r, s, self.out_channels // self.groups, self.in_channels)
        specs = {"weight": ParameterSpec(shape, fan_uniform, *fans)}
        if self.bias:
            specs["bias"] = ParameterSpec((self.out_channels,), fan_uniform, *fans)
        return specs

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return K.conv_transpose2d(x, self.p["weight"], self.p.get("bias"), **self.window), x

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        x: Array = saved
        weight = self.p["weight"]
        self.add_gradient("weight", K.conv_transpose2d_backward_weight, dy, x, weight_shape=weight.shape, **self.window)
        if self.bias:
            self.add_gradient("bias", K.conv2d_backward_bias, dy)
        if not need_dx:
            return (None,)
        return (K.conv_transpose2d_backward_data(dy, weight, x_shape=x.shape, **self.window),)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, h, w, _ = image_shape(self, shapes[0], self.in_channels)
        oh, ow = (
            (size - 1) * self.stride[i]
            - sum(self.padding[i])
            + self.dilation[i] * (self.kernel_size[i] - 1)
            + self.output_padding[i]
            + 1
            for i, size in enumerate((h, w))
        )
        if oh < 1 or ow < 1:
            raise ValueError(f"{self.name}: output would be {oh}x{ow} for an image of {h}x{w}, expected at least 1x1")
        return n, oh, ow, self.out_channels

    def macs(self, *shapes: Shape) -> int:
        n, h, w, c = shapes[0]
        r, s = self.kernel_size
        return n * h * w * c * r * s * (self.out_channels // self.groups)
