"""Random changes of training images, each a function of (seed, epoch, sample id) alone.

So a sample looks the same whichever rank, batch or thread asks for it, and a resumed run sees what the unbroken one
would have seen. Moves, flips, turns and the zoom of an image are one affine map, and all its grey-level changes one
line, so an image is resampled once and masks go through the same map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels

from .partition import Ids
from .random import Purpose, sample_bits, uniform
from .source import Images

_DRAWS = 12


@dataclass(frozen=True)
class Augment:
    """What may be changed; a field at its default changes nothing.

    * ``crop_padding``: shift by up to this many pixels each way, zeros coming in: a random crop of the padded image.
    * ``horizontal_flip``, ``vertical_flip``: each with probability 1/2.
    * ``rotate90``: by 0, 90, 180 or 270 degrees (square images).
    * ``rotate_degrees``: by a further angle up to this much each way.
    * ``zoom``: size times 1/(1+z) to 1+z.
    * ``brightness``: up to this part of the full range added or taken away.
    * ``contrast``: distance from mid-grey times 1-c to 1+c.
    * ``colour``: each channel times 1-c to 1+c.

    S2 trains with ``Augment(crop_padding=2, horizontal_flip=True)``.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotate90: bool = False
    rotate_degrees: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotate_degrees": 180.0, "crop_padding": 65535.0, "zoom": 4.0}
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, bool) and not 0 <= value <= limits.get(item.name, 1.0):
                raise ValueError(f"Augment: {item.name} is {value}, expected 0 to {limits.get(item.name, 1.0):g}")

    def at(self, seed: int, epoch: int) -> EpochAugment:
        """The transform of one epoch, for ``Loader(transform=...)``."""
        return EpochAugment(self, seed, epoch)


@dataclass(frozen=True)
class Changes:
    """What is done to the images of a batch, as ``kernels.warp`` wants it: matrix (n, 2, 3), gain and bias (n, c)."""

    matrix: NDArray[np.float64]
    gain: NDArray[np.float64] | None
    bias: NDArray[np.float64] | None

    def of_images(self, images: Images) -> Images:
        """The changed images, in host memory or on a device, as they are given."""
        return kernels.warp(images, self.matrix, gain=self.gain, bias=self.bias)

    def of_masks(self, masks: Images) -> Images:
        """The masks that belong to them."""
        return kernels.warp(masks[..., None], self.matrix, mode="nearest")[..., 0]


@dataclass(frozen=True)
class EpochAugment:
    """Callable on a batch: uint8 images (n, h, w, c), masks uint8 (n, h, w) or None, sample ids (n,)."""

    options: Augment
    seed: int
    epoch: int

    def __call__(self, images: Images, masks: Images | None, ids: Ids) -> tuple[Images, Images | None]:
        """Changed copies. ValueError where ``rotate90`` meets images that are not square."""
        changes = self.changes(images.shape, ids)
        if changes is None:
            return images, masks
        return changes.of_images(images), None if masks is None else changes.of_masks(masks)

    def changes(self, shape: tuple[int, ...], ids: Ids) -> Changes | None:
        """What is to be done to images of a shape (n, h, w, c); None for nothing. ValueError as above."""
        o = self.options
        if o == Augment():
            return None
        _, h, w, c = shape
        if o.rotate90 and h != w:
            raise ValueError(f"augment: rotate90 of images {h}x{w}, expected square ones")
        bits = sample_bits(ids, _DRAWS, seed=self.seed, epoch=self.epoch, purpose=Purpose.AUGMENT)
        return Changes(self._matrix(bits, h, w), *self._levels(bits, c))

    def _matrix(self, bits: NDArray[np.uint32], h: int, w: int) -> NDArray[np.float64]:
        """From output (column, row, 1) to input (column, row), about the centre; words 0 to 6 of the bits."""
        o, n = self.options, len(bits)
        draws = uniform(bits).astype(np.float64)
        span = 2 * o.crop_padding + 1
        # Below 2**16 the product of a 32-bit word and the span fits 64 bits: an unbiased enough shift without floats.
        shift = (bits[:, :2].astype(np.uint64) * np.uint64(span) >> np.uint64(32)).astype(np.int64) - o.crop_padding
        sign_x = 1 - 2.0 * (o.horizontal_flip & (bits[:, 2] >> 31 == 1))
        sign_y = 1 - 2.0 * (o.vertical_flip & (bits[:, 3] >> 31 == 1))
        quarter = np.where(o.rotate90, bits[:, 4] >> 30, 0).astype(np.int64)
        # Whole numbers, so that quarter turns alone stay exact.
        cosine, sine = np.array([1.0, 0, -1, 0])[quarter], np.array([0.0, 1, 0, -1])[quarter]
        linear = np.empty((n, 2, 2))
        linear[:, 0, 0], linear[:, 0, 1] = cosine * sign_x, -sine * sign_y
        linear[:, 1, 0], linear[:, 1, 1] = sine * sign_x, cosine * sign_y
        if o.rotate_degrees or o.zoom:
            angle = np.deg2rad((2 * draws[:, 5] - 1) * o.rotate_degrees)
            scale = (1 + o.zoom) ** (2 * draws[:, 6] - 1)
            small = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(n, 2, 2)
            linear = small @ linear / scale[:, None, None]
        centre = np.array([(w - 1) / 2, (h - 1) / 2])
        matrix = np.empty((n, 2, 3))
        matrix[..., :2] = linear
        matrix[..., 2] = centre - linear @ centre + shift
        return matrix

    def _levels(
        self, bits: NDArray[np.uint32], c: int
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        """Gain and bias per channel; words 7 to 11 of the bits."""
        o = self.options
        if not (o.brightness or o.contrast or o.colour):
            return None, None
        draws = 2 * uniform(bits).astype(np.float64) - 1
        contrast = 1 + o.contrast * draws[:, 7:8]
        # Channels beyond the third take the draws in turn.
        colour = 1 + o.colour * draws[:, [9 + k % 3 for k in range(c)]]
        gain = contrast * colour
        bias = 127.5 * (1 - contrast) * colour + 255 * o.brightness * draws[:, 8:9]
        return gain, bias
