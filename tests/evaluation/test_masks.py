"""Dice per image, connected regions and the match of objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medmpi.evaluation import Match, dice_per_image, instances, match_instances


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_regions_equal_scipy(mask):
    found, count = instances(mask)
    expected, n = ndimage.label(mask, structure=np.ones((3, 3)))
    assert count == n
    np.testing.assert_array_equal(found, expected)  # both number by first pixel


def test_regions_of_a_large_mask():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.random((300, 200)), 2) > 0.5
    found, count = instances(mask)
    expected, n = ndimage.label(mask, structure=np.ones((3, 3)))
    assert count == n > 20
    np.testing.assert_array_equal(found, expected)


def test_objects_by_hand():
    truth, predicted = np.zeros((4, 12), int), np.zeros((4, 12), int)
    truth[:2, :4] = 5  # found exactly
    predicted[:2, :4] = 1
    truth[:, 6:8] = 9  # half found: an IoU of exactly one half is no match
    predicted[:2, 6:8] = 2
    predicted[3, 11] = 3  # nothing there
    found = match_instances(truth, predicted)
    assert found == Match(2, 3, 1, pytest.approx(1 + 2 / 3), 1.0)
    assert found.f1 == pytest.approx(2 / 5)
    assert found.dice == pytest.approx((1 + 2 / 3) / 2)
    assert found.panoptic_quality == pytest.approx(2 / 5)
    both = found + match_instances(truth, truth)
    assert (both.truth, both.predicted, both.matched) == (4, 5, 3)
    empty = match_instances(np.zeros((3, 3), int), np.zeros((3, 3), int))
    assert np.isnan(empty.f1)
    assert match_instances(truth, 0 * truth) == Match(2, 0, 0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"0\.4"):
        match_instances(truth, predicted, 0.4)


def test_dice_leaves_out_what_is_not_there():
    confusions = np.array([[[5, 1, 0], [2, 8, 0], [0, 0, 0]], [[9, 0, 0], [0, 0, 0], [3, 0, 0]]])
    dice, iou = dice_per_image(confusions)
    np.testing.assert_allclose(dice, [[10 / 13, 16 / 19, np.nan], [18 / 21, np.nan, 0]])
    np.testing.assert_allclose(iou, [[5 / 8, 8 / 11, np.nan], [9 / 12, np.nan, 0]])
