"""Losses: called with logits and labels they return their value and its gradient by the logits.

A loss is a sum over samples divided by what the whole batch holds. Where a rank has a part of the batch, it passes the
sum of all ranks' ``denominators(labels)``; then losses and gradients of the ranks add up to those of one rank that
holds it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array, on_device, to_place

Labels: TypeAlias = NDArray[np.int64]
Denominators: TypeAlias = NDArray[np.float64]


class Loss(Protocol):
    """What trainers call."""

    def denominators(self, labels: Labels) -> Denominators:
        """What this part of the batch adds to the loss's denominators, for a sum over ranks and micro-batches."""
        ...

    def __call__(
        self, logits: Array, labels: Labels, *, denominator: float | Denominators | None = None
    ) -> tuple[float, Array]:
        """The loss and its gradient; the denominators default to those of ``labels``."""
        ...

    @property
    def terms(self) -> int:
        """The numbers that ``enqueue`` makes; 0 where it cannot be had."""
        ...

    def divisors(self, denominators: Denominators) -> Denominators:
        """What ``enqueue`` divides its terms by."""
        ...

    def enqueue(self, logits: Array, labels: Labels, divisors: Denominators, values: Denominators) -> Array:
        """The gradient, all arrays on a device and nobody waiting: ``values`` (terms,) get what adds up to the loss.

        The labels must be classes.
        """
        ...


def _weights(weight: Sequence[float] | Array | None) -> Array | None:
    if weight is None:
        return None
    weights = np.ascontiguousarray(weight, np.float32)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"CrossEntropy: weight is {weight}, expected finite numbers >= 0, one per class, not all 0")
    return weights


def _total(labels: Labels, weight: Array | None) -> float:
    """The sum of the labels' weights; labels out of range count nothing here, as the kernel reports them."""
    if weight is None:
        return float(labels.size)
    good = labels[(labels >= 0) & (labels < weight.size)]
    counts = np.bincount(good.ravel(), minlength=weight.size)
    return float(counts @ weight.astype(np.float64))


def _check_gamma(gamma: float) -> float:
    if not 0 <= gamma <= 10:
        raise ValueError(f"CrossEntropy: gamma is {gamma}, expected 0 to 10")
    return gamma


def _entropy(
    logits: Array, labels: Labels, weight: Array | None, denominator: float, gamma: float
) -> tuple[float, Array]:
    """The (focal) cross-entropy and its gradient.

    With p of the label, the focal loss is -(1 - p)^gamma log p. Its gradient by the logits is the cross-entropy's
    times (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p, one factor per sample.
    """
    if on_device(logits):
        if gamma:  # on the host, which has the arithmetic
            loss, dlogits = _entropy(K.to_host(logits), labels, weight, denominator, gamma)
            return loss, K.to_device(dlogits)
        labels, weight = K.to_device(labels), None if weight is None else K.to_device(weight)
    loss, dlogits = K.softmax_cross_entropy(logits, labels, weight=weight, denominator=denominator)
    if gamma == 0:
        return loss, dlogits
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    log_p = (np.take_along_axis(z, labels[..., None], -1)[..., 0]) - np.log(np.exp(z).sum(-1))
    p, rest = np.exp(log_p), -np.expm1(log_p)
    eased = rest**gamma
    each = 1.0 if weight is None else weight.astype(np.float64)[labels]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(rest > 0, gamma * p * rest ** (gamma - 1) * log_p, 0.0)
    factor = (eased - slope).astype(np.float32)
    np.multiply(dlogits, factor[..., None], out=dlogits)
    return float((each * eased * -log_p).sum() / denominator), dlogits


def _beside(loss: CrossEntropy | DiceCrossEntropy, logits: Array) -> Array | None:
    """The loss's class weights where the logits are, copied there once."""
    if loss.weight is not None and loss.weight_there is None:
        loss.weight_there = to_place(loss.weight, logits)
    return loss.weight_there


class Rows(Protocol):
    """The ranks that hold the other rows of the same images."""

    tiles: int

    def sum(self, array: Denominators) -> Denominators:
        """The sum over all of them."""
        ...


class CrossEntropy:
    """Softmax and negative log-likelihood, as ``torch.nn.CrossEntropyLoss(weight)`` with its mean.

    Logits are (N, K) or (N, H, W, K), labels int64 (N,) or (N, H, W). The denominator is the sum of the labels'
    weights. With ``gamma`` above 0 it is the focal loss (Lin et al. 2017), which counts what is easy less: classes
    that are rare weigh more without being named.
    """

    def __init__(self, weight: Sequence[float] | Array | None = None, *, gamma: float = 0.0) -> None:
        self.weight, self.gamma = _weights(weight), _check_gamma(gamma)
        self.weight_there: Array | None = None

    def denominators(self, labels: Labels) -> Denominators:
        """The sum of the labels' weights, shape (1,)."""
        return np.array([_total(labels, self.weight)])

    def __call__(
        self, logits: Array, labels: Labels, *, denominator: float | Denominators | None = None
    ) -> tuple[float, Array]:
        (total,) = np.atleast_1d(self.denominators(labels) if denominator is None else denominator)
        if total == 0:  # no samples, or only classes of weight 0
            total = 1.0
        return _entropy(logits, labels, self.weight, float(total), self.gamma)

    @property
    def terms(self) -> int:
        """The cross-entropy alone; none with ``gamma``, which is computed on the host."""
        return 0 if self.gamma else 1

    def divisors(self, denominators: Denominators) -> Denominators:
        """As every loss."""
        return np.where(denominators == 0, 1.0, denominators)

    def enqueue(self, logits: Array, labels: Labels, divisors: Denominators, values: Denominators) -> Array:
        """As every loss."""
        return K.softmax_cross_entropy_by(logits, labels, divisors, values, weight=_beside(self, logits))


class DiceCrossEntropy:
    """``dice`` times the soft Dice loss plus ``cross_entropy`` times the cross-entropy, for segmentation.

    Logits are (N, H, W, K), labels int64 (N, H, W). Dice is taken per image and class, then averaged: images of other
    ranks do not enter it, so sharing a batch among ranks changes nothing. The denominators are those of the
    cross-entropy and the number of images. ``gamma`` as in ``CrossEntropy``. Where images are split by rows over
    ``rows``, each rank returns its share.
    """

    def __init__(
        self,
        weight: Sequence[float] | Array | None = None,
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        smooth: float = 1e-5,
        include_background: bool = True,
        gamma: float = 0.0,
        rows: Rows | None = None,
    ) -> None:
        if not (dice > 0 and cross_entropy > 0):
            raise ValueError(f"DiceCrossEntropy: factors are {dice} and {cross_entropy}, expected both above 0")
        self.weight, self.dice, self.cross_entropy = _weights(weight), dice, cross_entropy
        self.smooth, self.include_background, self.rows = smooth, include_background, rows
        self.gamma = _check_gamma(gamma)
        self.weight_there: Array | None = None

    def denominators(self, labels: Labels) -> Denominators:
        """The sum of the labels' weights and the number of images, shape (2,)."""
        tiles = 1 if self.rows is None else self.rows.tiles  # each of which counts the image
        return np.array([_total(labels, self.weight), labels.shape[0] / tiles])

    def __call__(
        self, logits: Array, labels: Labels, *, denominator: float | Denominators | None = None
    ) -> tuple[float, Array]:
        """As every loss; ``denominator`` has the shape (2,)."""
        totals = self.denominators(labels) if denominator is None else np.atleast_1d(denominator)
        if totals.shape != (2,):
            raise ValueError(f"DiceCrossEntropy: denominator has shape {totals.shape}, expected (2,)")
        totals = np.where(totals == 0, 1.0, totals)
        divisor = float(totals[0]) / self.cross_entropy
        entropy, dlogits = _entropy(logits, labels, self.weight, divisor, self.gamma)
        if self.rows is not None:
            dice, ddice = self._dice_of_rows(self.rows, logits, labels, float(totals[1]) / self.dice)
            return entropy + dice, K.add(dlogits, ddice, out=dlogits)
        dice, ddice = K.dice_loss(
            logits, to_place(labels, logits), smooth=self.smooth, include_background=self.include_background,
            denominator=float(totals[1]) / self.dice,
        )  # fmt: skip
        return entropy + dice, K.add(dlogits, ddice, out=dlogits)

    @property
    def terms(self) -> int:
        """Cross-entropy and Dice; none with ``gamma`` or ``rows``, which are computed on the host."""
        return 0 if self.gamma or self.rows is not None else 2

    def divisors(self, denominators: Denominators) -> Denominators:
        """As every loss."""
        return np.where(denominators == 0, 1.0, denominators) / (self.cross_entropy, self.dice)

    def enqueue(self, logits: Array, labels: Labels, divisors: Denominators, values: Denominators) -> Array:
        """As every loss."""
        dlogits = K.softmax_cross_entropy_by(logits, labels, divisors[:1], values[:1], weight=_beside(self, logits))
        ddice = K.dice_loss_by(
            logits, labels, divisors[1:], values[1:], smooth=self.smooth, include_background=self.include_background
        )
        return K.add(dlogits, ddice, out=dlogits)

    def _dice_of_rows(self, rows: Rows, logits: Array, labels: Labels, denominator: float) -> tuple[float, Array]:
        """``kernels.dice_loss`` of images of which this rank has some rows: sums first, then loss and gradient."""
        p = K.softmax(logits)
        n, classes = len(logits), logits.shape[-1]
        masks = [labels == c for c in range(classes)]
        sums = np.zeros((3, n, classes))  # of p t, p, t
        sums[1] = p.sum((1, 2), dtype=np.float64)
        for c, mask in enumerate(masks):
            sums[0, :, c] = (p[..., c] * mask).sum((1, 2), dtype=np.float64)
            sums[2, :, c] = mask.sum((1, 2))
        both, above, below = rows.sum(sums)
        used = np.arange(classes) >= (0 if self.include_background else 1)
        total = above + below + self.smooth
        top = 2 * both + self.smooth
        value = float((1 - (top / total)[:, used].mean(1)).sum()) / denominator / rows.tiles
        scale = used / (used.sum() * total * denominator)
        hit, rest = (-2 * scale).astype(np.float32), (scale * top / total).astype(np.float32)
        g = np.broadcast_to(rest[:, None, None], p.shape).copy()
        for c, mask in enumerate(masks):
            g[..., c] += hit[:, None, None, c] * mask
        g -= (p * g).sum(-1, keepdims=True)
        return value, np.multiply(p, g, out=p)
