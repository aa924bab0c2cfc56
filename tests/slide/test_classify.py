"""Slide-level scores: features of known shapes, AUC with its interval, and the table by stride."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi.data import DataError
from medmpi.slide.classify import FEATURES, at_stride, auc_interval, cross_scores, features, forest_scores
from medmpi.slide.commands.classify import read_labels
from tests.slide.test_stitch import heatmap


def test_features_of_a_known_shape():
    """Points 16 level-0 pixels of 0.25 um apart: 4 um. A bar of 5 x 20 and a spot of 2 x 2."""
    scores = np.full((60, 80), 0.1)
    scores[10:15, 30:50] = 0.95
    scores[40:42, 10:12] = 0.6
    found = dict(zip(FEATURES, features(heatmap(scores, shape=(960, 1280))), strict=True))
    assert found["max"] == pytest.approx(0.95)
    assert found["regions_0.5"] == 2
    assert found["regions_0.9"] == 1
    assert found["largest_area_0.9"] == pytest.approx(100 * 0.004**2)
    assert found["second_area_0.5"] == pytest.approx(4 * 0.004**2)
    assert found["area_of_tissue_0.5"] == pytest.approx(104 / 4800)
    assert found["largest_axis_0.5"] == pytest.approx(20 * 0.004 * 4 / np.sqrt(12), rel=1e-6)
    assert found["largest_extent_0.5"] == 1
    assert found["largest_eccentricity_0.5"] == pytest.approx(np.sqrt(1 - (5 / 20) ** 2))
    assert not features(heatmap(scores, counts=np.zeros(scores.shape, np.uint32))).any()


def test_a_coarser_stride_is_every_kth_point():
    heat = heatmap(np.arange(51 * 76).reshape(51, 76) / 4000)
    coarse = at_stride(heat, 64)
    np.testing.assert_array_equal(coarse.of(), heat.of()[::4, ::4])
    assert coarse.meta.step == 64
    with pytest.raises(ValueError, match="multiple of the heatmap's 16"):
        at_stride(heat, 24)


def test_auc_and_its_interval():
    positive = np.array([False, False, True, True, True])
    auc = auc_interval(positive, np.array([0.1, 0.4, 0.35, 0.8, 0.9]))
    assert auc.value == pytest.approx(5 / 6)
    # DeLong by hand: components of the positives 1/2, 1, 1 (variance 1/12), of the negatives 1, 2/3 (1/18)
    half = 1.959964 * np.sqrt(1 / 12 / 3 + 1 / 18 / 2)
    assert auc.low == pytest.approx(5 / 6 - half)
    assert auc.high == 1.0
    assert auc_interval(positive, np.zeros(5)).value == 0.5
    with pytest.raises(ValueError, match="some of each"):
        auc_interval(np.ones(3, bool), np.zeros(3))


def test_the_interval_covers_the_truth():
    """95 % of the time, by simulation of two normal distributions with an AUC of .76."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        score = np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 60)])
        auc = auc_interval(np.arange(100) < 40, score)
        covered += auc.low <= 0.76025 <= auc.high
    assert 0.91 < covered / 400 < 0.985


def test_the_forest_learns_and_never_sees_what_it_scores():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    rows = rng.normal(size=(60, 8))
    rows[:, 3] += 2 * labels
    scores, importance = cross_scores(rows, labels, trees=60)
    assert auc_interval(labels, scores).value > 0.8
    assert importance.argmax() == 3
    noise, _ = cross_scores(rng.normal(size=(60, 8)), labels, trees=60)
    assert auc_interval(labels, noise).value < 0.75  # a forest that had seen its slides would reach 1
    again, _ = forest_scores(rows[:40], labels[:40], rows[40:], trees=60)
    np.testing.assert_array_equal(again, forest_scores(rows[:40], labels[:40], rows[40:], trees=60)[0])
    with pytest.raises(ValueError, match="2 or more"):
        cross_scores(rows, np.arange(60) == 0)


def test_labels_are_checked(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide,label,patient\na,1,p\nb,normal,q\n")
    assert read_labels(path) == ({"a": True, "b": False}, {"a": "p", "b": "q"})
    for text, why in (("slide,label\na,2\n", "line 2"), ("slide,label\na,1\na,0\n", "names a again")):
        path.write_text(text)
        with pytest.raises(DataError, match=why):
            read_labels(path)
