"""Losses against torch, and shares of a batch against the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from twin import close, images

from medmpi import nn

WEIGHT = [0.5, 2.0, 0.0, 1.0]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)], ids=["classes", "pixels"])
def test_cross_entropy_equals_torch(shape: tuple[int, ...], weight: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the losses")
    rng = np.random.default_rng(0)
    logits, labels = 3 * images(rng, *shape, 4), rng.integers(0, 4, shape)
    loss, dlogits = nn.CrossEntropy(weight)(logits, labels)
    wide = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    twin = torch.nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight, dtype=torch.float64))
    expected = twin(wide.reshape(-1, 4), torch.from_numpy(labels.reshape(-1)))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    close(dlogits, wide.grad.numpy())


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropy(), nn.CrossEntropy(WEIGHT), nn.DiceCrossEntropy(), nn.DiceCrossEntropy(WEIGHT, dice=0.3)]
)
def test_shares_add_up_to_the_batch(loss: nn.Loss) -> None:
    rng = np.random.default_rng(1)
    logits, labels = images(rng, 6, 5, 4, 4), rng.integers(0, 4, (6, 5, 4))
    whole, gradient = loss(logits, labels)
    parts = [slice(0, 1), slice(1, 1), slice(1, 6)]
    total = np.sum([loss.denominators(labels[part]) for part in parts], axis=0)
    results = [loss(logits[part], labels[part], denominator=total) for part in parts]
    assert sum(value for value, _ in results) == pytest.approx(whole, rel=1e-6)
    close(np.concatenate([dlogits for _, dlogits in results]), gradient)


def test_dice_and_cross_entropy_equal_their_formula() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the losses")
    rng = np.random.default_rng(2)
    logits, labels = images(rng, 2, 6, 5, 3), rng.integers(0, 3, (2, 6, 5))
    loss, dlogits = nn.DiceCrossEntropy(dice=2.0, cross_entropy=0.5, smooth=1e-3)(logits, labels)
    wide = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    target = torch.from_numpy(labels)
    p, t = wide.softmax(-1), torch.nn.functional.one_hot(target, 3).double()
    dice = (2 * (p * t).sum((1, 2)) + 1e-3) / (p.sum((1, 2)) + t.sum((1, 2)) + 1e-3)
    entropy = torch.nn.functional.cross_entropy(wide.reshape(-1, 3), target.reshape(-1))
    expected = 2 * (1 - dice.mean(1)).mean() + entropy / 2
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    close(dlogits, wide.grad.numpy())


def test_no_samples_cost_nothing() -> None:
    empty, labels = np.zeros((0, 4, 4, 4), np.float32), np.zeros((0, 4, 4), np.int64)
    for loss in (nn.CrossEntropy(), nn.CrossEntropy(WEIGHT), nn.DiceCrossEntropy()):
        value, dlogits = loss(empty, labels)
        assert value == 0
        assert dlogits.shape == empty.shape
    # a batch of nothing but classes of weight 0
    value, dlogits = nn.CrossEntropy(WEIGHT)(np.ones((2, 4), np.float32), np.full(2, 2))
    assert value == 0
    assert not dlogits.any()


def test_wrong_arguments_are_named() -> None:
    for weight in ([1.0, -1.0], [0.0, 0.0], [1.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="weight is"):
            nn.CrossEntropy(weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"denominator has shape \(1,\), expected \(2,\)"):
        nn.DiceCrossEntropy()(np.ones((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2), np.int64), denominator=4.0)
    with pytest.raises(ValueError, match="expected both above 0"):
        nn.DiceCrossEntropy(dice=0)
    with pytest.raises(ValueError, match="9"):
        nn.CrossEntropy(WEIGHT)(np.ones((2, 4), np.float32), np.array([0, 9]))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_equals_its_definition_in_torch(weight: Any, gamma: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the losses")
    rng = np.random.default_rng(0)
    logits, labels = 3 * images(rng, 30, 4), rng.integers(0, 4, 30)
    logits[0], labels[0] = [60, 0, 0, 0], 0  # certain and right: p is 1 in float32
    logits[1], labels[1] = [-90, 0, 0, 0], 0  # certain and wrong
    loss, dlogits = nn.CrossEntropy(weight, gamma=gamma)(logits, labels)
    wide = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    truth = torch.from_numpy(labels)
    log_p = torch.log_softmax(wide, -1)[range(30), truth]
    each = torch.ones(30) if weight is None else torch.tensor(weight, dtype=torch.float64)[truth]
    expected = (each * -torch.expm1(log_p).abs().pow(gamma) * log_p).sum() / each.sum()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    close(dlogits, np.nan_to_num(wide.grad.numpy()), 1e-5)


def test_focal_loss_with_dice_is_the_sum_of_both() -> None:
    rng = np.random.default_rng(3)
    logits, labels = images(rng, 2, 4, 4, 3), rng.integers(0, 3, (2, 4, 4))
    both, gradient = nn.DiceCrossEntropy(gamma=2.0, dice=0.5)(logits, labels)
    plain, plain_gradient = nn.DiceCrossEntropy(dice=0.5)(logits, labels)
    entropy, e = nn.CrossEntropy()(logits, labels)
    focal, f = nn.CrossEntropy(gamma=2.0)(logits, labels)
    assert both - plain == pytest.approx(focal - entropy, rel=1e-5)
    close(gradient - plain_gradient, f - e, 1e-4)
    with pytest.raises(ValueError, match="gamma is -1"):
        nn.CrossEntropy(gamma=-1)
