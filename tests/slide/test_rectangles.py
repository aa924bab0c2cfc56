"""Neighbouring patches in one tile: each once, the same scores, less arithmetic, and a bad tile costs no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmpi import models
from medmpi.slide.predict import Predictor, in_bands
from medmpi.slide.prepare import PrepareOptions, prepare
from medmpi.slide.reader import BadTile, Slide
from medmpi.slide.rectangles import Rectangle, cover
from medmpi.slide.store import Store, open_source
from tests.slide.conftest import classifier_of, tissue_slide, write_slide

SHAPES = [(3, 3), (2, 4), (2, 2), (1, 3), (1, 2), (2, 1), (1, 1)]


@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60), st.randoms())
def test_each_cell_is_covered_once_whatever_their_order(cells, order):
    listed = sorted(cells)
    found = cover(np.array(listed, np.int32).reshape(-1, 2), SHAPES)
    assert sorted(patch for part in found for patch in part.patches) == listed
    assert {(part.rows, part.columns) for part in found} <= set(SHAPES)
    order.shuffle(listed)
    assert cover(np.array(listed, np.int32).reshape(-1, 2), SHAPES) == found


def test_the_first_shapes_come_first_and_gaps_are_kept():
    square = [(r, c) for r in range(70_000, 70_003) for c in range(5, 8)]
    far = [(0, 0), (0, 2), (69_998, 5), (90_000, 80_000)]
    found = cover(np.array([*far, *square], np.int32), SHAPES)
    assert found[0] == Rectangle(70_000, 5, 3, 3)
    assert {(part.row, part.column, part.rows, part.columns) for part in found[1:]} == {(*cell, 1, 1) for cell in far}
    with pytest.raises(ValueError, match=r"expected \(1, 1\) as the last"):
        cover(np.array([(0, 0)], np.int32), [(2, 2)])


def scores_of(group):
    """First row and column of each patch's points -> its scores."""
    found, at = {}, 0
    for y, x, h, w in group.blocks.tolist():
        found[y, x] = group.scores[at : at + h * w].reshape(h, w, -1)
        at += h * w
    assert at == len(group.scores)
    return found


@pytest.fixture
def store(tmp_path):
    """One group of 20 patches, the last ones cut by the slide's edge."""
    write_slide(tmp_path / "slide.tif", tissue_slide((730, 1100)))
    options = PrepareOptions(pixels="none", tissue="all")
    path, _, _ = prepare(tmp_path / "slide.tif", tmp_path, options)
    with Store(path) as opened:
        yield opened


@pytest.mark.parametrize("stride", [4, 16, 50, 223])
def test_merged_patches_have_their_own_scores(store, stride):
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=32), 32, scale=100.0)
    predictor = Predictor(classifier, stride, engine="shared")
    told: list[tuple[int, int]] = []
    with open_source(store) as slide:
        merged = scores_of(predictor.group(store, 0, slide, progress=lambda *at: told.append(at)))
        assert stride > 16 or len(told) < 20
        assert all(0 <= done < total == 20 for done, total in told)
        predictor.shapes = [(1, 1)]
        single = scores_of(predictor.group(store, 0, slide))
    assert merged.keys() == single.keys()
    assert len(single) == (12 if stride == 223 else 20)  # some of the last own no points
    for place, want in single.items():
        np.testing.assert_allclose(merged[place], want, atol=1e-5)


@pytest.mark.parametrize(("stride", "least"), [(1, 1.2), (16, 2.2), (64, 1.5)])
def test_merging_saves_arithmetic_within_bounds(stride, least):
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=224), 224)
    predictor = Predictor(classifier, stride, engine="shared")
    shapes = predictor.shapes
    assert shapes[-1] == (1, 1)
    assert shapes[0] != (1, 1)
    cost = {s: predictor.engine.macs(stride, (-(-s[0] * 224 // stride), -(-s[1] * 224 // stride))) for s in shapes}
    per_patch = [cost[h, w] / (h * w) for h, w in shapes]
    assert per_patch == sorted(per_patch)
    assert per_patch[-1] / per_patch[0] > least
    for h, w in shapes[:-1]:
        counts = -(-h * 224 // stride), -(-w * 224 // stride)
        assert predictor.engine.plan.largest(stride, counts) * 4 <= 128 << 20
    assert Predictor(classifier, 300, engine="shared").shapes == [(1, 1)]  # not all patches own points
    assert Predictor(classifier, 224, engine="windowed").shapes == [(1, 1)]


class Damaged(Slide):
    """A slide that cannot be read where it is marked."""

    def __init__(self, slide, y, x):
        super().__init__(slide.path)
        self.shapes, self.downsamples, self.mpp = slide.shapes, slide.downsamples, slide.mpp
        self._slide, self._at, self.reads = slide, (y, x), 0

    def _read(self, level, y, x, h, w):
        self.reads += 1
        if y <= self._at[0] < y + h and x <= self._at[1] < x + w:
            raise BadTile(self.path, "planted", "")
        return self._slide.read(level, y, x, h, w)


def test_a_bad_place_in_a_merged_tile_costs_the_patches_that_see_it(store):
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=32), 32, scale=100.0)
    predictor = Predictor(classifier, 16, engine="shared")
    with open_source(store) as slide:
        want = scores_of(predictor.group(store, 0, slide))
        found = predictor.group(store, 0, Damaged(slide, 300, 400))
    assert [(r, c) for r, c, _ in found.bad] == [(1, 1)]
    assert "planted" in found.bad[0][2]
    got = scores_of(found)
    assert want.keys() - got.keys() == {(14, 14)}
    for place, values in got.items():
        np.testing.assert_allclose(values, want[place], atol=1e-5)


def test_bands_join_to_the_whole(monkeypatch):
    monkeypatch.setattr("medmpi.slide.predict._BAND", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 3)).astype(np.uint8)
    heights = []

    def invert(part):
        heights.append(len(part))
        return 255 - part

    np.testing.assert_array_equal(in_bands(invert, pixels), 255 - pixels)
    assert max(heights) * 23 <= 100
