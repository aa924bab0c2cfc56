"""What a layer is: a differentiable function that keeps parameters but no activations."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import Array
from .exact import Totals
from .initialise import Initializer

Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
Moments: TypeAlias = NDArray[np.float64]


class Statistics(Protocol):
    """Joins batch statistics over ranks. All calls are collective: all ranks make them in the same order."""

    def merge(self, count: int, mean: Moments, m2: Moments) -> tuple[int, Moments, Moments]:
        """Count, mean and sum of squared deviations per channel over all ranks, from those of this rank."""
        ...

    def start_sum(self, array: Moments) -> Callable[[], Moments]:
        """Begins the sum of ``array`` over all ranks; the call that it returns waits for it."""
        ...

    def merge_parts(self, parts: Moments) -> tuple[int, Moments, Moments]:
        """As ``merge`` of rows (count, mean, m2), one for each part of this rank's samples, in order of the samples."""
        ...

    def sum_parts(self, parts: Moments) -> Moments:
        """The sum of the rows of all ranks, one for each part of the samples, in order of the samples."""
        ...


class Keys(Protocol):
    """Keys of random numbers in device memory."""

    def take(self, context: Context, name: str, per_sample: int) -> NDArray[np.int64]:
        """Seed and offset, int64 (2,), of the layer ``name``."""
        ...


@dataclass
class Context:
    """What a pass through a graph depends on besides its inputs.

    ``first_sample`` is the index of this rank's first sample within the global batch and ``step`` the number of the
    training step: with ``seed`` and a layer's name they key its random numbers, so that any number of ranks draws the
    same ones. With ``statistics``, batch normalisation uses the batch of all ranks. ``keep`` makes a pass that is not
    training keep what ``backward`` needs: gradients of the network as it is used, for explanations. With ``keys``,
    random numbers on a device have their keys there: a pass that is captured draws other ones at every launch.
    """

    train: bool = True
    seed: int = 0
    step: int = 0
    first_sample: int = 0
    statistics: Statistics | None = None
    keep: bool = False
    keys: Keys | None = None
    moments: dict[int, tuple[weakref.ref[Array], Moments, Moments]] = field(default_factory=dict, repr=False)

    def note_moments(self, y: Array, mean: Moments, m2: Moments) -> None:
        """A convolution's moments of its result, taken on the way, for the batch normalisation that reads it."""
        self.moments[id(y)] = weakref.ref(y), mean, m2

    def noted_moments(self, x: Array) -> tuple[Moments, Moments] | None:
        """Mean and sum of squared deviations per channel where somebody noted them for this very array."""
        note = self.moments.pop(id(x), None)
        return note[1:] if note is not None and note[0]() is x else None

    def key(self, name: str) -> int:
        """A 63-bit key for the random numbers of the layer ``name`` in this step."""
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class ParameterSpec:
    """Shape of a parameter (the kernels' layout) and how it starts; the fans are torch's for the same layer."""

    shape: Shape
    initialise: Initializer
    fan_in: int = 1
    fan_out: int = 1


class Layer:
    """A differentiable function. ``forward`` returns what ``backward`` needs, so many passes can be in flight.

    ``p`` and ``g`` (parameters and their gradients) are set by ``Parameters`` as views of its flat arrays; ``b`` holds
    buffers, which training updates without gradients. ``name`` is the node's name, set by ``Graph.add``. With
    ``exact``, set by ``ExactGradients``, gradients go there instead of to ``g``. A ``frozen`` layer (``Graph.freeze``)
    computes no gradients of its parameters and works as in inference.
    """

    keeps_output: bool = False
    """Whether ``saved`` holds the forward result, which nobody may overwrite then."""
    aliases: ClassVar[bool] = False
    """Whether the forward result may share memory with the first input."""
    adds_onto: ClassVar[bool] = False
    """Whether ``backward_inputs`` can add the gradient of the (only) input to one that is there."""

    def __init__(self, init: Mapping[str, Initializer] | None = None) -> None:
        self.name = type(self).__name__
        self.p: dict[str, Array] = {}
        self.g: dict[str, Array] = {}
        self.b: dict[str, NDArray[Any]] = {name: value.copy() for name, value in self.buffer_specs().items()}
        self.exact: Totals | None = None
        self.frozen = False
        self.init = dict(init or {})
        unknown = self.init.keys() - self.parameter_specs().keys()
        if unknown:
            raise ValueError(f"{type(self).__name__}: init names {sorted(unknown)}, expected names of its parameters")

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        """Name -> specification of each parameter, in torch's order."""
        return {}

    def buffer_specs(self) -> dict[str, NDArray[Any]]:
        """Name -> initial value of each buffer, in torch's order."""
        return {}

    def forward(self, *xs: Array, context: Context, overwrite: bool = False) -> tuple[Array, Any]:
        """The result and what ``backward`` will need of it; ``overwrite`` allows to use the memory of ``xs[0]``."""
        raise NotImplementedError

    def backward(
        self, dy: Array, saved: Any, need_dx: bool = True, overwrite: bool = False
    ) -> tuple[Array | None, ...]:
        """Adds to ``g`` and returns the gradient of each input, or None for all with ``need_dx=False``.

        ``overwrite`` allows to use the memory of ``dy`` for one of the results.
        """
        raise NotImplementedError

    def backward_inputs(
        self, dy: Array, saved: Any, overwrite: bool = False, onto: tuple[Array, bool] | None = None
    ) -> tuple[tuple[Array | None, ...], Callable[[], None] | None]:
        """As ``backward``, but adding to ``g`` may be left for later: what then does it comes back as well.

        ``onto``, only for a layer that ``adds_onto``, is what the gradient of its input is added to, and whether that
        may be overwritten.
        """
        return self.backward(dy, saved, True, overwrite), None

    def meets(self, context: Context) -> bool:
        """Whether the result for a sample depends on the whole batch, so that its micro-batches must meet here.

        Then ``forward(x)`` is ``forward_after(x, forward_meet([x]))``, and so is ``backward``.
        """
        return False

    def forward_meet(self, batches: Sequence[Sequence[Array]], context: Context) -> Any:
        """What the micro-batches, whose inputs these are, make together."""
        raise NotImplementedError

    def forward_after(self, xs: Sequence[Array], joint: Any, context: Context) -> tuple[Array, Any]:
        """Result and saved value of one micro-batch."""
        raise NotImplementedError

    def joins(self, saved: Any) -> bool:
        """Whether ``backward`` of this pass needs the other ranks."""
        return False

    def start_backward_meet(self, batches: Sequence[tuple[Array, Any]]) -> Callable[[], Any]:
        """Brings this rank's part of ``backward_meet``; the call that it returns waits for the other ranks'."""
        raise NotImplementedError

    def backward_meet(self, batches: Sequence[tuple[Array, Any]]) -> Any:
        """What the micro-batches' (``dy``, saved value) make together; adds the parameter gradients of all."""
        return self.start_backward_meet(batches)()

    def backward_after(self, dy: Array, saved: Any, joint: Any, overwrite: bool = False) -> tuple[Array | None, ...]:
        """The gradient of each input for one micro-batch."""
        raise NotImplementedError

    def add_gradient(self, name: str, kernel: Callable[..., Array], *batch: Array, **options: Any) -> None:
        """Adds ``kernel(*batch, **options)``, the gradient of a parameter, to where it belongs."""
        if self.frozen:
            return
        if self.exact is None:
            kernel(*batch, out=self.g[name], **options)
            return
        for part in self.exact.parts(len(batch[0])):
            self.exact.totals[name] += kernel(*(array[part] for array in batch), **options)

    def move(self, place: Callable[[Array], Array]) -> None:
        """Parameters and running statistics become what ``place`` makes of them: for inference elsewhere."""
        for table in (self.p, self.b):
            table.update((name, place(value)) for name, value in table.items() if value.dtype.kind == "f")

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the result for inputs of these shapes; ValueError where they do not fit."""
        raise NotImplementedError

    def macs(self, *shapes: Shape) -> int:
        """Multiply-adds of one forward pass on inputs of these shapes, as usually counted (convolutions, matrices)."""
        return 0

    def can_overwrite(self, train: bool) -> bool:
        """Whether ``forward`` has a use for the memory of its first input when nobody else needs that."""
        return False

    def to_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """A parameter or buffer in torch's layout."""
        return value

    def from_torch(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """A parameter or buffer from torch's layout; the shape is already checked."""
        return value

    def describe(self) -> str:
        """The arguments that matter to a reader, for summaries."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"


def pair(value: Pair) -> tuple[int, int]:
    """``value`` for height and width."""
    return (value, value) if isinstance(value, int) else value


def sides(padding: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as ((top, bottom), (left, right))."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    a, b = padding
    return (a, a) if isinstance(a, int) else a, (b, b) if isinstance(b, int) else b


def image_shape(layer: Layer, shape: Shape, channels: int | None = None) -> tuple[int, int, int, int]:
    """``shape`` as (N, H, W, C); ValueError where it is not that of a batch of images with ``channels``."""
    if len(shape) != 4:
        raise ValueError(f"{layer.name}: x has shape {shape}, expected (N, H, W, C)")
    if channels is not None and shape[3] != channels:
        raise ValueError(f"{layer.name}: x has {shape[3]} channels, expected {channels}")
    return shape[0], shape[1], shape[2], shape[3]


def window_size(layer: Layer, size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    """Output size of a sliding window along one axis; ValueError where the image is smaller than the window."""
    reach = dilation * (kernel - 1) + 1
    padded = size + padding[0] + padding[1]
    if padded < reach:
        raise ValueError(
            f"{layer.name}: image side is {size} ({padded} with padding), expected at least the window's {reach};"
            " the input image is too small for this model"
        )
    return (padded - reach) // stride + 1
