"""Scores against scikit-learn, and the identities they check themselves by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmpi.train import metrics

sklearn = pytest.importorskip("sklearn.metrics")


def _case(seed, n, classes, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 2, (n, classes)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    logits[np.arange(n), labels] += 1
    return labels, logits


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "classes"), [(500, 2), (500, 5), (37, 10)])
def test_scores_match_scikit_learn(n, classes, ties):
    labels, logits = _case(n + classes, n, classes, ties)
    found = metrics.classification(labels, logits)
    predicted = logits.argmax(1)
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    p = np.exp(wide - np.log(np.exp(wide).sum(1, keepdims=True)))
    seen = np.union1d(labels, predicted)
    macro = {"average": "macro", "zero_division": 0, "labels": seen}
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted), abs=1e-12)
    assert found.precision == pytest.approx(sklearn.precision_score(labels, predicted, **macro), abs=1e-12)
    assert found.recall == pytest.approx(sklearn.recall_score(labels, predicted, **macro), abs=1e-12)
    assert found.f1 == pytest.approx(sklearn.f1_score(labels, predicted, **macro), abs=1e-12)
    assert found.iou == pytest.approx(sklearn.jaccard_score(labels, predicted, **macro), abs=1e-12)
    assert found.loss == pytest.approx(sklearn.log_loss(labels, p, labels=range(classes)), abs=1e-9)
    if classes == 2:
        area = sklearn.roc_auc_score(labels, wide[:, 1] - wide[:, 0])
    else:
        area = sklearn.roc_auc_score(labels, p, multi_class="ovr")
    assert found.auc == pytest.approx(area, abs=1e-12)
    np.testing.assert_array_equal(found.confusion, sklearn.confusion_matrix(labels, predicted, labels=range(classes)))


def test_weighted_loss_is_the_weighted_mean():
    labels, logits = _case(3, 50, 3)
    weight = np.array([1.0, 2.0, 0.5])
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    expected = sum(-weight[k] * log_p[i, k] for i, k in enumerate(labels)) / weight[labels].sum()
    assert metrics.classification(labels, logits, weight).loss == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.lists(st.integers(0, 40), min_size=4, max_size=4), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_identities_hold_for_any_confusion_matrix(rows):
    matrix = np.array(rows, np.int64)
    scores = metrics.from_confusion(matrix, loss=0.0, auc=0.5, samples=int(matrix.sum()))
    if matrix.sum():
        assert scores.f1 <= (scores.precision + scores.recall) / 2 + 1e-9
        assert scores.iou <= scores.f1 + 1e-9


@pytest.mark.parametrize(
    ("change", "word"),
    [({"f1": 0.7197, "precision": 0.7107, "recall": 0.7084}, "macro F1"), ({"recall": 0.8782, "f1": 0.5}, "balanced")],
)
def test_impossible_tables_are_refused(change, word):
    import dataclasses

    scores = metrics.from_confusion(np.array([[8, 2], [3, 7]]), loss=0.1, auc=0.9, samples=20)
    with pytest.raises(RuntimeError, match=word):
        metrics.check(dataclasses.replace(scores, **change))


def test_one_class_only_and_no_sample_give_nan_not_errors():
    labels, logits = _case(0, 10, 2)
    one = metrics.classification(np.zeros(10, np.int64), logits)
    assert np.isnan(one.auc)
    assert 0 <= one.accuracy <= 1
    none = metrics.classification(labels[:0], logits[:0])
    assert none.samples == 0
    assert np.isnan(none.accuracy)


def test_non_finite_logits_give_a_nan_loss():
    labels, logits = _case(0, 10, 3)
    logits[4, 1] = np.nan
    assert np.isnan(metrics.classification(labels, logits).loss)


def test_label_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"labels hold 0\.\.3, expected 0\.\.2"):
        metrics.confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
