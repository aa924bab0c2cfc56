"""Softmax and losses that return their gradient with their value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arguments import number
from .arrays import Array, result_for, shape_of

Float64 = NDArray[np.float64]


def softmax(x: Array, *, out: Array | None = None) -> Array:
    """Softmax over the last axis of a float32 array of one or more dimensions; ``out`` may be ``x``."""
    out = result_for("softmax", x, shape_of("softmax", "x", x), out)
    _core.softmax(x, out)
    return out


def _check_labels(op: str, logits: Array, labels: NDArray[np.int64]) -> None:
    want = shape_of(op, "logits", logits)[:-1]
    if shape_of(op, "labels", labels) != want:
        raise ValueError(f"{op}: labels has shape {labels.shape}, expected {want}, that of logits without classes")


def _by(op: str, denominator: float | None) -> float | None:
    return None if denominator is None else number(op, "denominator", denominator)


def softmax_cross_entropy(
    logits: Array,
    labels: NDArray[np.int64],
    *,
    weight: Array | None = None,
    denominator: float | None = None,
    out: Array | None = None,
) -> tuple[float, Array]:
    """``loss = sum_i w[l_i] (-log softmax(logits_i)[l_i]) / denominator`` and its gradient by the logits.

    ``logits`` is float32 ``(..., K)``, ``labels`` int64 of the same leading shape, ``weight`` float32 ``(K,)`` or None
    (all 1). The denominator defaults to the sum of the labels' weights: torch's ``reduction="mean"``. A rank that
    holds a part of the batch passes the whole batch's sum, and the ranks' losses and gradients add up. The sum is
    float64. NaN logits make the loss NaN. Without rows the loss is 0. ``out`` may be ``logits``.

    ValueError names the position and value of a label outside ``[0, K)``; nothing is written then.
    """
    _check_labels("softmax_cross_entropy", logits, labels)
    out = result_for("softmax_cross_entropy", logits, logits.shape, out)
    return _core.softmax_cross_entropy(logits, labels, weight, _by("softmax_cross_entropy", denominator), out), out


def dice_loss(
    logits: Array,
    labels: NDArray[np.int64],
    *,
    smooth: float = 1e-5,
    include_background: bool = True,
    denominator: float | None = None,
    out: Array | None = None,
) -> tuple[float, Array]:
    """Soft Dice loss of a segmentation and its gradient by the logits.

    With ``p = softmax(logits)`` and ``t`` the one-hot labels, an image's loss is ``1 - mean over classes of
    (2 sum p t + smooth) / (sum p + sum t + smooth)``, sums over its pixels (Milletari et al. 2016 without squares, as
    MONAI's DiceLoss); the images' losses are summed and divided by ``denominator``, the number of images by default.
    ``logits`` is float32 ``(N, H, W, K)``, ``labels`` int64 ``(N, H, W)``. ``include_background=False`` leaves class 0
    out of the mean. ``out`` may be ``logits``. Errors as ``softmax_cross_entropy``.
    """
    _check_labels("dice_loss", logits, labels)
    out = result_for("dice_loss", logits, logits.shape, out)
    smooth, by = number("dice_loss", "smooth", smooth), _by("dice_loss", denominator)
    return _core.dice_loss(logits, labels, smooth, include_background, by, out), out


def softmax_cross_entropy_by(
    logits: Array,
    labels: NDArray[np.int64],
    denominator: Float64,
    loss: Float64,
    *,
    weight: Array | None = None,
    out: Array | None = None,
) -> Array:
    """``softmax_cross_entropy`` on a device that the host does not wait for: the gradient.

    ``denominator`` (1,) and ``loss`` (1,) are float64 on the device: the one is read when the device comes to it, the
    other written. Nobody looks at ``labels``, which must be in ``[0, K)``.
    """
    _check_labels("softmax_cross_entropy_by", logits, labels)
    out = result_for("softmax_cross_entropy_by", logits, logits.shape, out)
    _core.softmax_cross_entropy_by(logits, labels, weight, denominator, loss, out)
    return out


def dice_loss_by(
    logits: Array,
    labels: NDArray[np.int64],
    denominator: Float64,
    loss: Float64,
    *,
    smooth: float = 1e-5,
    include_background: bool = True,
    out: Array | None = None,
) -> Array:
    """``dice_loss`` in the way of ``softmax_cross_entropy_by``: the gradient."""
    _check_labels("dice_loss_by", logits, labels)
    out = result_for("dice_loss_by", logits, logits.shape, out)
    _core.dice_loss_by(logits, labels, smooth, include_background, denominator, loss, out)
    return out


def count_correct(logits: Array, labels: NDArray[np.int64], count: NDArray[np.int64]) -> None:
    """``count[0] = (logits.argmax(-1) == labels).sum()``, all three on a device; the host does not wait for it."""
    _check_labels("count_correct", logits, labels)
    _core.count_correct(logits, labels, count)
