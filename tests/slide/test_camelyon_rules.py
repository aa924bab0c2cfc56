"""FROC and AUC against the published rules of CAMELYON16, written down a second time without any library's help."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medmpi.data import DataError
from medmpi.slide.classify import auc_interval
from medmpi.slide.detections import Detection, read_csv
from medmpi.slide.froc import RATES, evaluation_regions, froc, hits

MPP, LEVEL = 0.972, 5  # coarse pixels of 31.1 um keep the pictures small: 75 um / 2 are 1.2 of them, 275 um are 8.8
PIXEL = MPP * 2**LEVEL
SHAPE = (22, 26)


def neighbours(place, shape, *, diagonal):
    y, x = place
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inside = 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]
            if (dy or dx) and inside and (diagonal or not (dy and dx)):
                yield y + dy, x + dx


def flood(start, allowed, shape, *, diagonal):
    """All places that are connected to the start within a set."""
    found, front = set(start), list(start)
    while front:
        for place in neighbours(front.pop(), shape, diagonal=diagonal):
            if place in allowed and place not in found:
                found.add(place)
                front.append(place)
    return found


def regions_by_the_rules(mask):
    """Lists of pixels: lesions and regions of isolated tumour cells, top left first."""
    h, w = mask.shape
    everywhere = [(y, x) for y in range(h) for x in range(w)]
    tumour = [(y, x) for y, x in everywhere if mask[y, x]]
    near = {p for p in everywhere if any(math.dist(p, t) < 75 / (2 * PIXEL) for t in tumour)}
    outside = set(everywhere) - near
    border = [(y, x) for y, x in outside if y in (0, h - 1) or x in (0, w - 1)]
    filled = set(everywhere) - flood(border, outside, mask.shape, diagonal=False)
    lesions, isolated = [], []
    while filled:
        region = flood([min(filled)], filled, mask.shape, diagonal=True)
        filled -= region
        n = len(region)
        my, mx = sum(y for y, _ in region) / n, sum(x for _, x in region) / n
        a, c = sum((y - my) ** 2 for y, _ in region) / n, sum((x - mx) ** 2 for _, x in region) / n
        b = sum((y - my) * (x - mx) for y, x in region) / n
        major = 4 * math.sqrt((a + c) / 2 + math.sqrt(4 * b * b + (a - c) ** 2) / 2)
        (isolated if major < 275 / PIXEL else lesions).append(region)
    return lesions, isolated


def froc_by_the_rules(slides, *, official):
    """``slides``: (mask or None, detections). As the challenge's code: lists of probabilities, thresholds, line."""
    false, true, lesions = [], [], 0
    for mask, found in slides:
        big, small = regions_by_the_rules(mask) if mask is not None else ([], [])
        lesions += len(big)
        best = {}
        for d in found:
            at = math.floor(d.y / 2**LEVEL), math.floor(d.x / 2**LEVEL)
            hit = [i for i, region in enumerate(big) if at in region]
            if hit:
                best[hit[0]] = max(best.get(hit[0], 0.0), d.score)
            elif not any(at in region for region in small):
                false.append(d.score)
        true += [best.get(i) for i in range(len(big))]
        if official:
            true += [None] * len(small)  # its array has a place for every region, lesion or not
    known = [0.0 if p is None else p for p in true] if official else [p for p in true if p is not None]
    thresholds = sorted({*false, *known})[1 if official else 0 :]
    points = [(sum(p >= t for p in false) / len(slides), sum(p >= t for p in known) / lesions) for t in thresholds]
    points = [*points, (0.0, 0.0)][::-1]

    def read(rate):
        """The curve at a rate, on the line between its points; where it rises at one rate, the upper end."""
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= rate < x1:
                return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)
        return points[-1][1]

    return [read(rate) for rate in RATES]


rectangle = st.tuples(st.integers(0, 21), st.integers(0, 25), st.integers(1, 12), st.integers(1, 14))
detection = st.builds(
    Detection,
    st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.5, 0.75, 0.9, 1.0]),  # ties are the rule
    st.one_of(st.integers(-40, 30 * 32).map(float), st.integers(0, 26).map(lambda n: n * 32.0)),  # on borders, too
    st.one_of(st.floats(-40, 26 * 32, width=32), st.integers(0, 22).map(lambda n: n * 32.0)),
)


@st.composite
def slide(draw):
    """Truth of a few rectangles, some with a hole, and detections; one in four slides is normal."""
    found = draw(st.lists(detection, max_size=8))
    if draw(st.integers(0, 3)) == 0:
        return None, found
    mask = np.zeros(SHAPE, bool)
    for y, x, h, w in draw(st.lists(rectangle, min_size=1, max_size=4)):
        mask[y : y + h, x : x + w] = True
        if draw(st.booleans()):
            mask[y + 1 : y + h - 1, x + 1 : x + w - 1] = False
    return mask, found


@settings(max_examples=60, deadline=None)
@given(st.lists(slide(), min_size=1, max_size=4), st.booleans())
def test_froc_by_the_rules(slides, official):
    regions = [None if mask is None else evaluation_regions(mask, mpp=MPP, level=LEVEL) for mask, _ in slides]
    for (mask, _), own in zip(slides, regions, strict=True):
        if own is not None:
            big, small = regions_by_the_rules(mask)
            pixels = {n: set(zip(*np.nonzero(own.labels == n), strict=True)) for n in range(1, own.labels.max() + 1)}
            assert sorted(map(min, (pixels[n] for n in own.lesions))) == sorted(map(min, big))
            assert sorted(map(len, (pixels[n] for n in own.isolated))) == sorted(map(len, small))
    results = [hits(found, own) for (_, found), own in zip(slides, regions, strict=True)]
    if not any(result.lesions for result in results):
        with pytest.raises(ValueError, match="no lesions"):
            froc(results, official=official)
        return
    want = froc_by_the_rules(slides, official=official)
    result = froc(results, official=official)
    np.testing.assert_allclose(result.at_rates, want, rtol=0, atol=1e-12)
    assert result.score == pytest.approx(sum(want) / 6)


def test_nothing_detected_and_isolated_cells_alone():
    lesion = np.zeros(SHAPE, bool)
    lesion[3:15, 3:15] = True
    cells = np.zeros(SHAPE, bool)
    cells[5:8, 5:8] = True
    own, few = (evaluation_regions(mask, mpp=MPP) for mask in (lesion, cells))
    assert (len(own.lesions), few.lesions, len(few.isolated)) == (1, [], 1)
    for official in (False, True):
        assert froc([hits([], own)], official=official).at_rates == (0.0,) * 6
        with pytest.raises(ValueError, match="no lesions"):
            froc([hits([Detection(0.9, 200, 200)], few)], official=official)
        one = froc([hits([Detection(0.9, 200, 200)], own), hits([Detection(0.9, 200, 200)], few)], official=official)
        assert one.at_rates == (1.0,) * 6  # cells count neither way
    alone = [hits([Detection(0.9, 200, 200)], own)]
    assert froc(alone).score == 1
    assert froc(alone, official=True).score == 0  # its only threshold is the smallest


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.2, 0.5, 0.9, 1.0])), min_size=2, max_size=30))
def test_auc_with_ties(cases):
    labels, scores = (np.array(column) for column in zip(*cases, strict=True))
    if labels.all() or not labels.any():
        with pytest.raises(ValueError, match="some of each"):
            auc_interval(labels, scores)
        return
    found = auc_interval(labels, scores)
    assert found.value == pytest.approx(roc_auc_score(labels, scores))
    assert math.isnan(found.low) or 0 <= found.low <= found.value <= found.high <= 1


def test_auc_of_what_is_no_number():
    with pytest.raises(ValueError, match="1 scores are not finite"):
        auc_interval(np.array([True, False]), np.array([0.5, np.nan]))


@pytest.mark.parametrize("line", ["nan,1,2", "0.5,inf,2", "1.2,3,4", "-0.1,3,4", "0.5,3", "a,b,c", "0.5;3;4"])
def test_what_is_no_detection_is_named_by_its_line(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"0.25,1,2\n{line}\n")
    with pytest.raises(DataError, match=r"a\.csv: line 2 is "):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("text", ["", "\n", "score,x,y\n", "\ufeffScore, X, Y\n"])
def test_no_detections_are_an_empty_list(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == []
    (tmp_path / "a.csv").write_text(text + "0.5, 1, 2\r\n1,3e2,4\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == [Detection(0.5, 1, 2), Detection(1.0, 300, 4)]
