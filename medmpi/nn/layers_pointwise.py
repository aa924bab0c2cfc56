"""Layers without parameters that keep the image's size: ReLU, dropout, sums and concatenations."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import kernels as K
from ..kernels.arrays import Array
from .layer import Context, Layer, Shape


class ReLU(Layer):
    """``max(x, 0)`` (S0 eq. 5)."""

    keeps_output = True

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        y = K.relu(x, out=x if overwrite else None)
        return y, y

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (K.relu_backward(dy, saved, out=dy if overwrite else None) if need_dx else None,)

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def can_overwrite(self, train: bool) -> bool:
        return True


class Dropout(Layer):
    """Sets each element to 0 with probability ``p`` while training and scales the others by 1/(1 - p).

    Which elements depends on the context's seed, step and sample numbers and on the layer's name alone: not on how the
    batch is shared among ranks. Nothing is kept for ``backward`` but the key.
    """

    aliases = True  # in evaluation

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, expected 0 <= p < 1")
        self.probability = p
        super().__init__()

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        (x,) = xs
        if not context.train or self.probability == 0:
            return x, None
        if context.keys is not None:
            in_memory = context.keys.take(context, self.name, prod(x.shape[1:]))
            return K.dropout_keyed(x, self.probability, in_memory, out=x if overwrite else None), in_memory
        key = context.key(self.name), context.first_sample * prod(x.shape[1:])
        y = K.dropout(x, self.probability, seed=key[0], offset=key[1], out=x if overwrite else None)
        return y, key

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if saved is None or not need_dx:
            return (dy if need_dx else None,)
        out = dy if overwrite else None
        if not isinstance(saved, tuple):
            return (K.dropout_keyed(dy, self.probability, saved, out=out),)
        seed, offset = saved
        return (K.dropout_backward(dy, self.probability, seed=seed, offset=offset, out=out),)

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def can_overwrite(self, train: bool) -> bool:
        return train

    def describe(self) -> str:
        return f"{self.probability:g}"


class Add(Layer):
    """The sum of two or more inputs of one shape."""

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        y = K.add(xs[0], xs[1], out=xs[0] if overwrite else None)
        for x in xs[2:]:
            K.add(y, x, out=y)
        return y, len(xs)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        return (dy if need_dx else None,) * int(saved)

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) < 2:
            raise ValueError(f"{self.name}: {len(shapes)} inputs, expected at least 2")
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"{self.name}: inputs have shapes {', '.join(map(str, shapes))}, expected equal ones")
        return shapes[0]

    def can_overwrite(self, train: bool) -> bool:
        return True


class Concat(Layer):
    """Inputs of one image size behind each other along the channels."""

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        return K.concat(xs, axis=-1), tuple(x.shape[-1] for x in xs)

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        if not need_dx:
            return (None,) * len(saved)
        return tuple(K.split(dy, saved, axis=-1))

    def output_shape(self, *shapes: Shape) -> Shape:
        if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
            text = ", ".join(map(str, shapes))
            raise ValueError(f"{self.name}: inputs have shapes {text}, expected equal ones but for the channels")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
