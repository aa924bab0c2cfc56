"""Softmax and the losses against float64 numpy, torch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels

pytestmark = pytest.mark.usefixtures("backend")

EPS = float(np.finfo(np.float32).eps)
SHAPES = [(1, 1), (5, 2), (33, 3), (16, 10), (7, 31), (9, 32), (9, 33), (4, 100), (3, 1000), (2, 7, 9, 5), (3000, 9)]


def reference_softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_cross_entropy(x, labels, weight=None, denominator=None):
    """The definition, in float64: loss and gradient."""
    p = reference_softmax(x).reshape(-1, x.shape[-1])
    rows, labels = np.arange(len(p)), labels.reshape(-1)
    w = np.ones(len(p)) if weight is None else weight.astype(np.float64)[labels]
    denominator = w.sum() if denominator is None else denominator
    loss = (w * -np.log(p[rows, labels])).sum() / denominator
    p[rows, labels] -= 1
    return loss, (p * w[:, None] / denominator).reshape(x.shape)


def reference_dice(x, labels, smooth=1e-5, first=0, denominator=None):
    p, t = reference_softmax(x), np.eye(x.shape[-1])[labels]
    both, sizes = 2 * (p * t).sum(axis=(1, 2)), p.sum(axis=(1, 2)) + t.sum(axis=(1, 2))
    score = ((both + smooth) / (sizes + smooth))[:, first:].mean(axis=1)
    return (1 - score).sum() / (len(x) if denominator is None else denominator)


def make(rng, shape, scale=3.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32), rng.integers(0, shape[-1], shape[:-1])


def poison(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("shape", [*SHAPES, (4,)])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 80.0])
def test_softmax(rng, shape, scale):
    x, _ = make(rng, shape, scale)
    y = kernels.softmax(x, out=poison(shape))
    np.testing.assert_allclose(y, reference_softmax(x), rtol=32 * EPS + 2 * EPS * scale, atol=1e-37)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-5)
    kernels.softmax(x, out=x)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("denominator", [None, 7.5])
def test_cross_entropy(rng, shape, weighted, denominator):
    x, labels = make(rng, shape)
    weight = rng.uniform(0.2, 3, shape[-1]).astype(np.float32) if weighted else None
    loss, dx = kernels.softmax_cross_entropy(x, labels, weight=weight, denominator=denominator, out=poison(shape))
    want, want_dx = reference_cross_entropy(x, labels, weight, denominator)
    assert loss == pytest.approx(want, rel=2e-6, abs=1e-6)
    np.testing.assert_allclose(dx, want_dx, rtol=64 * EPS, atol=32 * EPS * max(np.abs(want_dx).max(), 1e-30))
    again, _ = kernels.softmax_cross_entropy(x, labels, weight=weight, denominator=denominator, out=x)
    assert again == loss
    np.testing.assert_array_equal(x, dx)


@pytest.mark.parametrize(("shape", "weighted"), [((64, 10), True), ((2, 5, 6, 3), False), ((4, 200), True)])
def test_cross_entropy_against_torch(rng, shape, weighted):
    torch = pytest.importorskip("torch")
    x, labels = make(rng, shape)
    weight = rng.uniform(0.2, 3, shape[-1]).astype(np.float32) if weighted else None
    leaf = torch.tensor(x.reshape(-1, shape[-1]), requires_grad=True)
    weights = None if weight is None else torch.tensor(weight)
    want = torch.nn.functional.cross_entropy(leaf, torch.tensor(labels.reshape(-1)), weights)
    want.backward()
    loss, dx = kernels.softmax_cross_entropy(x, labels, weight=weight)
    assert loss == pytest.approx(want.item(), rel=1e-5)
    np.testing.assert_allclose(dx.reshape(-1, shape[-1]), leaf.grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [4, 40])
def test_cross_entropy_gradient_by_differences(rng, classes):
    x, labels = make(rng, (3, classes))
    weight = rng.uniform(0.2, 3, classes).astype(np.float32)
    _, dx = kernels.softmax_cross_entropy(x, labels, weight=weight)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-6
        up, down = (reference_cross_entropy(x + s, labels, weight)[0] for s in (step, -step))
        assert dx[at] == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-6)


def test_large_logits_do_not_overflow():
    x = np.array([[1e38, -1e38, 0], [-3e38, -3e38, -3e38]], np.float32)
    loss, dx = kernels.softmax_cross_entropy(x, np.array([0, 2]))
    assert loss == pytest.approx(np.log(3) / 2)
    np.testing.assert_allclose(dx, [[0, 0, 0], [1 / 6, 1 / 6, -1 / 3]], atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 3), (5, 50)])
def test_nan_logits_reach_the_loss(rng, shape):
    for column in range(shape[1]):
        x, labels = make(rng, shape)
        x[2, column] = np.nan
        loss, dx = kernels.softmax_cross_entropy(x, labels)
        assert np.isnan(loss)
        assert np.isnan(dx[2]).all()
        assert not np.isnan(np.delete(dx, 2, axis=0)).any()


@pytest.mark.parametrize("shape", [(4, 6, 5, 2), (3, 40, 41, 4), (2, 5, 5, 40), (1, 1, 1, 3)])
@pytest.mark.parametrize("background", [True, False])
def test_dice(rng, shape, background):
    x, labels = make(rng, shape)
    loss, _ = kernels.dice_loss(x, labels, include_background=background, out=poison(shape))
    assert loss == pytest.approx(reference_dice(x, labels, first=0 if background else 1), rel=1e-5)


def test_dice_gradient_by_differences(rng):
    x, labels = make(rng, (2, 3, 2, 3), 1.0)
    _, dx = kernels.dice_loss(x, labels, smooth=0.1, include_background=False, denominator=5)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-6
        up, down = (reference_dice(x + s, labels, 0.1, 1, 5) for s in (step, -step))
        assert dx[at] == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-6)


def test_dice_is_small_for_a_right_answer_and_near_one_for_a_wrong_one():
    labels = np.zeros((1, 8, 8), np.int64)
    labels[:, :4] = 1
    right = np.where(np.eye(2)[labels] == 1, 20, -20).astype(np.float32)
    assert kernels.dice_loss(right, labels)[0] == pytest.approx(0, abs=1e-6)
    assert kernels.dice_loss(-right, labels)[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(5000, 7), (700, 90)])
def test_threads_change_no_bit(rng, with_threads, shape):
    x, labels = make(rng, shape)
    weight = rng.uniform(0.2, 3, shape[-1]).astype(np.float32)
    image, mask = make(rng, (3, 90, 90, 3))

    def both():
        loss, dx = kernels.softmax_cross_entropy(x, labels, weight=weight)
        dice, gradient = kernels.dice_loss(image, mask)
        return loss, dice, dx, gradient

    for a, b in zip(with_threads(1, both), with_threads(3, both), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parts_of_a_batch_add_up(rng):
    x, labels = make(rng, (11, 6))
    loss, dx = kernels.softmax_cross_entropy(x, labels)
    parts = [kernels.softmax_cross_entropy(x[p], labels[p], denominator=11) for p in (slice(0, 4), slice(4, 11))]
    assert sum(part for part, _ in parts) == pytest.approx(loss)
    np.testing.assert_allclose(np.concatenate([g for _, g in parts]), dx, rtol=1e-6)


def test_no_rows():
    x, labels = np.empty((0, 4), np.float32), np.empty(0, np.int64)
    assert kernels.softmax(x).shape == (0, 4)
    assert kernels.softmax_cross_entropy(x, labels)[0] == 0
    assert kernels.softmax_cross_entropy(x, labels, denominator=8)[0] == 0
    loss, dx = kernels.dice_loss(np.empty((0, 3, 3, 2), np.float32), np.empty((0, 3, 3), np.int64))
    assert loss == 0
    assert dx.shape == (0, 3, 3, 2)


@pytest.mark.parametrize("wrong", [3, -1, 2**40])
def test_labels_outside_are_named(wrong):
    x, labels = np.zeros((2, 4, 5, 3), np.float32), np.zeros((2, 4, 5), np.int64)
    labels[1, 2, 3] = wrong
    out = poison(x.shape)
    with pytest.raises(ValueError, match=rf"softmax_cross_entropy: labels\[1, 2, 3\] is {wrong}, expected 0 to 2"):
        kernels.softmax_cross_entropy(x, labels, out=out)
    assert np.isnan(out).all()
    with pytest.raises(ValueError, match=rf"dice_loss: labels\[1, 2, 3\] is {wrong}, expected 0 to 2"):
        kernels.dice_loss(x, labels, out=out)


def test_errors():
    x, labels = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: labels has shape \(3,\), expected \(4,\)"):
        kernels.softmax_cross_entropy(x, labels[:3])
    with pytest.raises(TypeError, match="softmax_cross_entropy: labels has dtype int32, expected int64"):
        kernels.softmax_cross_entropy(x, labels.astype(np.int32))
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: weight has shape \(4,\), expected \(3,\)"):
        kernels.softmax_cross_entropy(x, labels, weight=np.ones(4, np.float32))
    with pytest.raises(ValueError, match="softmax_cross_entropy: weight sums to 0"):
        kernels.softmax_cross_entropy(x, labels, weight=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="softmax_cross_entropy: denominator is 0"):
        kernels.softmax_cross_entropy(x, labels, denominator=0)
    with pytest.raises(ValueError, match="dice_loss: logits has 1 classes, expected more than 1"):
        kernels.dice_loss(np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2), np.int64), include_background=False)
    with pytest.raises(ValueError, match="dice_loss: smooth is 0"):
        kernels.dice_loss(np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2), np.int64), smooth=0)
