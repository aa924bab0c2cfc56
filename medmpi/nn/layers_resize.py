"""Layers that change the image's size: upsampling and padding, for decoders."""

from __future__ import annotations

from typing import Any, Literal

from .. import kernels as K
from ..kernels.arrays import Array
from .layer import Context, Layer, Padding, Shape, image_shape, sides


class Upsample(Layer):
    """The image ``scale`` times larger, as ``torch.nn.Upsample`` with ``align_corners=False``."""

    def __init__(self, scale: int = 2, mode: Literal["nearest", "bilinear"] = "bilinear") -> None:
        if scale < 1:
            raise ValueError(f"Upsample: scale is {scale}, expected at least 1")
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"Upsample: mode is {mode!r}, expected 'nearest' or 'bilinear'")
        self.scale, self.mode = scale, mode
        super().__init__()

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        _, h, w, _ = x.shape
        return K.resize(x, (h * self.scale, w * self.scale), mode=self.mode), x.shape

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (K.resize_backward(dy, x_shape=saved, mode=self.mode) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, h, w, c = image_shape(self, shapes[0])
        return n, h * self.scale, w * self.scale, c

    def describe(self) -> str:
        return f"{self.scale}x, {self.mode}"


class Pad2d(Layer):
    """Zeros around the image: ``padding`` is an int, (height, width) or ((top, bottom), (left, right))."""

    def __init__(self, padding: Padding) -> None:
        self.padding = sides(padding)
        if min(*self.padding[0], *self.padding[1]) < 0:
            raise ValueError(f"Pad2d: padding is {padding}, expected no negative sizes")
        super().__init__()

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        return K.pad(x, self.padding), None

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (K.crop(dy, self.padding) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        n, h, w, c = image_shape(self, shapes[0])
        return n, h + sum(self.padding[0]), w + sum(self.padding[1]), c

    def describe(self) -> str:
        (top, bottom), (left, right) = self.padding
        return f"{top}, {bottom}, {left}, {right}"
