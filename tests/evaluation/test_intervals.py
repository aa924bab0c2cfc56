"""Intervals against definitions written out, scikit-learn's curves, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from medmpi.evaluation import (
    apply_threshold,
    average_precision,
    bootstrap,
    choose_threshold,
    delong,
    precision_recall_curve,
    roc_curve,
    wilson,
)


def sample(n=200, shift=1.0, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    score = rng.standard_normal(n) + shift * positive
    return positive, np.round(score, 1) if ties else score


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_its_definition(ties):
    positive, score = sample(ties=ties)
    found = delong(positive, score)
    above = score[positive][:, None] - score[~positive][None]
    psi = (above > 0) + 0.5 * (above == 0)
    variance = psi.mean(1).var(ddof=1) / psi.shape[0] + psi.mean(0).var(ddof=1) / psi.shape[1]
    assert found.value == pytest.approx(psi.mean())
    assert found.value == pytest.approx(sk.roc_auc_score(positive, score))
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """The true area of two unit normals one apart is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(1 / 2))
    inside = {"delong": 0, "bootstrap": 0}
    for seed in range(200):
        positive, score = sample(seed=seed)
        found = delong(positive, score)
        inside["delong"] += found.low <= truth <= found.high
        if seed < 60:
            resampled = bootstrap(
                lambda i, p=positive, s=score: delong(p[i], s[i]).value, positive.astype(int), samples=200
            )
            inside["bootstrap"] += resampled.low <= truth <= resampled.high
    assert inside["delong"] >= 180  # 190 expected, 3 standard deviations are 9
    assert inside["bootstrap"] >= 50


def test_delong_without_enough_says_so():
    found = delong(np.array([True, False, False]), np.array([1.0, 0.0, 2.0]))
    assert found.value == 0.5
    assert math.isnan(found.low)
    few, many = (delong(np.repeat([True, False], k), np.repeat([1.0, 0.0], k)) for k in (5, 100))
    assert few.method == "Newcombe"
    assert (few.value, few.high) == (1, 1)
    assert 0.5 < few.low < 0.8  # a perfect order of ten samples proves little
    assert 0.95 < many.low < 1
    reverse = delong(np.repeat([True, False], 5), np.repeat([0.0, 1.0], 5))
    assert (reverse.value, reverse.low, reverse.high) == (0, 0, pytest.approx(1 - few.low))
    assert math.isnan(delong(np.ones(3, bool), np.arange(3.0)).value)
    assert math.isnan(delong(np.array([True, False]), np.array([np.nan, 1.0])).value)
    with pytest.raises(ValueError, match="expected one each"):
        delong(np.ones(3, bool), np.ones(2))


def test_wilson():
    found = wilson(8, 10)  # Newcombe 1998
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="11 hits of 10"):
        wilson(11, 10)


@pytest.mark.parametrize("ties", [False, True])
def test_curves_equal_sklearn(ties):
    positive, score = sample(ties=ties)
    fpr, tpr, thresholds = roc_curve(positive, score)
    theirs = sk.roc_curve(positive, score, drop_intermediate=False)
    for ours, expected in zip((fpr, tpr, thresholds), theirs, strict=True):
        np.testing.assert_allclose(ours, expected)
    precision, recall, _ = precision_recall_curve(positive, score)
    p, r, _ = sk.precision_recall_curve(positive, score)
    np.testing.assert_allclose(precision[1:], p[:-1][::-1])
    np.testing.assert_allclose(recall[1:], r[:-1][::-1])
    assert average_precision(positive, score) == pytest.approx(sk.average_precision_score(positive, score))


def test_curves_refuse_what_has_none():
    with pytest.raises(ValueError, match="only one class"):
        roc_curve(np.ones(3, bool), np.arange(3.0))
    with pytest.raises(ValueError, match="not finite"):
        roc_curve(np.array([True, False]), np.array([np.inf, 0.0]))
    assert math.isnan(average_precision(np.zeros(3, bool), np.arange(3.0)))


@pytest.mark.parametrize(
    ("rule", "worth"),
    [
        ("youden", lambda p: p.sensitivity.value + p.specificity.value),
        ("accuracy", lambda p: p.accuracy.value),
        ("sensitivity", lambda p: p.specificity.value if p.sensitivity.value >= 0.9 else -1),
        ("specificity", lambda p: p.sensitivity.value if p.specificity.value >= 0.9 else -1),
    ],
)
def test_no_other_threshold_is_better(rule, worth):
    positive, score = sample(ties=True)
    chosen = choose_threshold(positive, score, rule, at_least=0.9)
    best = worth(apply_threshold(positive, score, chosen))
    for threshold in [*np.unique(score), score.max() + 1]:
        assert worth(apply_threshold(positive, score, threshold)) <= best + 1e-12


def test_a_threshold_lies_between_scores():
    positive, score = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.4, 0.1])
    assert choose_threshold(positive, score) == pytest.approx(0.6)
    point = apply_threshold(positive, score, 0.6)
    assert (point.hits, point.misses, point.alarms, point.rejected) == (2, 0, 0, 2)
    with pytest.raises(ValueError, match="rule is 'best'"):
        choose_threshold(positive, score, "best")
