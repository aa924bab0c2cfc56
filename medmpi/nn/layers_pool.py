"""Pooling with torch's rules."""

from __future__ import annotations

from typing import Any

from .. import kernels as K
from ..kernels.arrays import Array
from .layer import Context, Layer, Pair, Shape, image_shape, pair


def _pooled(layer: Layer, size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Output size along one axis; with ``ceil_mode`` a last window may hang over the end but not start beyond it."""
    reach = dilation * (kernel - 1) + 1
    out = (size + 2 * padding - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    if out < 1:
        raise ValueError(
            f"{layer.name}: image side is {size} ({size + 2 * padding} with padding), expected at least the window's"
            f" {reach}; the input image is too small for this model"
        )
    return out


class _Pool(Layer):
    def __init__(self, kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool) -> None:
        self.kernel_size, self.padding, self.dilation = pair(kernel_size), pair(padding), pair(dilation)
        self.stride = self.kernel_size if stride is None else pair(stride)
        self.ceil_mode = ceil_mode
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"{type(self).__name__}: padding is {self.padding}, expected at most half of {self.kernel_size}"
            )
        super().__init__()

    def output_shape(self, *shapes: Shape) -> Shape:
        n, h, w, c = image_shape(self, shapes[0])
        oh, ow = (
            _pooled(self, *sizes, self.ceil_mode)
            for sizes in zip((h, w), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return n, oh, ow, c

    def describe(self) -> str:
        return f"{self.kernel_size[0]}x{self.kernel_size[1]}, stride {self.stride[0]}x{self.stride[1]}"


class MaxPool2d(_Pool):
    """The largest value of each window, as ``torch.nn.MaxPool2d``."""

    def __init__(
        self,
        kernel_size: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        y, indices = K.max_pool2d(
            x, self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip
        return y, (indices, x.shape)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        indices, x_shape = saved
        return (K.max_pool2d_backward(dy, indices, x_shape=x_shape) if need_dx else None,)


class AvgPool2d(_Pool):
    """The mean of each window, as ``torch.nn.AvgPool2d``."""

    def __init__(
        self,
        kernel_size: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        self._window: dict[str, Any] = {
            "stride": self.stride, "padding": self.padding, "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }  # fmt: skip

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return K.avg_pool2d(x, self.kernel_size, **self._window), x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if not need_dx:
            return (None,)
        return (K.avg_pool2d_backward(dy, self.kernel_size, x_shape=saved, **self._window),)


class GlobalAvgPool2d(Layer):
    """The mean of each image: (N, H, W, C) to (N, C)."""

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return K.global_avg_pool2d(x), x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (K.global_avg_pool2d_backward(dy, x_shape=saved) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, _, _, c = image_shape(self, shapes[0])
        return n, c


class AdaptiveAvgPool2d(Layer):
    """Means over windows that share the image out to a given output size, as ``torch.nn.AdaptiveAvgPool2d``."""

    aliases = True  # where the size is right already

    def __init__(self, output_size: Pair) -> None:
        self.output_size = pair(output_size)
        super().__init__()

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return x if x.shape[1:3] == self.output_size else K.adaptive_avg_pool2d(x, self.output_size), x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if not need_dx or saved == dy.shape:
            return (dy if need_dx else None,)
        return (K.adaptive_avg_pool2d_backward(dy, x_shape=saved),)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, _, _, c = image_shape(self, shapes[0])
        return n, *self.output_size, c

    def describe(self) -> str:
        return f"{self.output_size[0]}x{self.output_size[1]}"
