"""FROC by CAMELYON16's rules, on a case worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medmpi.data import DataError
from medmpi.slide.detections import Detection, write_csv
from medmpi.slide.froc import RATES, SlideHits, evaluation_regions, froc, hits
from medmpi.slide.main import main
from medmpi.slide.truth import read_annotation, read_mask

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "camelyon16"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data beside the checkout")
SIDE = 32  # level-0 pixels of a truth pixel


def truth():
    """At 7.776 um a pixel the truth grows by less than 4.82 pixels and 275 um are 35.4 pixels."""
    mask = np.zeros((300, 400), bool)
    mask[50:110, 50:110] = True  # A: one lesion
    mask[50:90, 200:240] = mask[50:90, 248:288] = True  # B: 8 pixels apart, which growing by 4 and 4 closes
    mask[200:260, 60:120] = True  # C: a ring, whose hole is filled
    mask[215:245, 75:105] = False
    mask[200:206, 300:306] = True  # D: 6 + 8 pixels, 15 along its axis: isolated tumour cells
    return mask


def at(score, y, x):
    """A detection in the middle of a truth pixel."""
    return Detection(score, (x + 0.5) * SIDE, (y + 0.5) * SIDE)


def test_regions_by_hand():
    regions = evaluation_regions(truth())
    assert regions.labels.max() == 4
    a, b, c, d = (regions.labels[place] for place in ((80, 80), (70, 210), (230, 90), (203, 303)))
    assert regions.labels[70, 244] == regions.labels[70, 270] == b
    assert len({a, b, c, d}) == 4
    assert regions.isolated == {d}
    assert regions.labels[46, 80] == a  # four pixels away: 4 < 4.82
    assert regions.labels[45, 80] == 0  # five are too far


def test_diagonal_neighbours_are_one_region():
    mask = np.zeros((200, 200), bool)
    mask[40:80, 40:80] = mask[87:127, 87:127] = True  # corners 7 apart each way: grown, they touch at corners
    assert evaluation_regions(mask).labels.max() in (1, 2)
    grown = np.zeros((200, 200), bool)
    grown[40:80, 40:80] = grown[80:120, 80:120] = True
    assert evaluation_regions(grown).labels.max() == 1


def test_hits_by_hand():
    found = [
        at(0.9, 80, 80), at(0.95, 60, 60),  # A twice: it counts once, with the better
        at(0.3, 230, 90),  # the hole of C is C
        at(0.99, 203, 303),  # isolated tumour cells: neither way
        at(0.8, 5, 5), at(0.2, 150, 200),  # two false positives
        Detection(0.7, 1e6, 10.0), Detection(0.6, -5.0, 10.0),  # outside of the picture
    ]  # fmt: skip
    result = hits(found, evaluation_regions(truth()))
    assert result.lesions == [0.95, None, 0.3]
    assert sorted(result.false_positives) == [0.2, 0.6, 0.7, 0.8]
    assert hits(found[:2], None).false_positives == [0.9, 0.95]  # a normal slide: all are false


def test_curve_by_hand():
    """Two slides, four lesions found at .9, .6, .4 and never; false positives at .8, .5, .3, .2.

    Threshold  .9: 0/2 FP, 1/4;  .8: 1/2, 1/4;  .6: 1/2, 2/4;  .5: 1, 2/4;  .4: 1, 3/4;  .3: 1.5, 3/4;  .2: 2, 3/4.
    """
    slides = [SlideHits([0.9, 0.6, None], [0.8, 0.3]), SlideHits([0.4], [0.5, 0.2])]
    result = froc(slides)
    np.testing.assert_allclose(result.thresholds, [np.inf, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2])
    np.testing.assert_allclose(result.false_positives, [0, 0, 0.5, 0.5, 1, 1, 1.5, 2])
    np.testing.assert_allclose(result.sensitivity, [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75])
    assert result.at_rates == (0.25, 0.5, 0.75, 0.75, 0.75, 0.75)
    assert result.score == pytest.approx(3.75 / 6)
    official = froc(
        slides, official=True
    )  # its list has a 0 for the lesion that was missed: that is what it leaves out
    np.testing.assert_allclose(official.thresholds, result.thresholds)
    assert official.at_rates == result.at_rates
    found_all = [SlideHits([0.9, 0.6], [0.8, 0.2])]
    assert froc(found_all).thresholds[-1] == 0.2
    assert froc(found_all, official=True).thresholds[-1] == 0.6
    assert froc(found_all).false_positives[-1] == 2
    assert froc(found_all, official=True).false_positives[-1] == 1


def test_without_lesions_there_is_no_sensitivity():
    with pytest.raises(ValueError, match="no lesions"):
        froc([SlideHits([], [0.5])])
    with pytest.raises(ValueError, match="no slides"):
        froc([])


def test_official_code_s_numbers():
    """The challenge's own loop, written down, on random slides."""
    rng = np.random.default_rng(0)
    slides = [
        SlideHits(
            [None if rng.random() < 0.3 else round(rng.random(), 2) for _ in range(rng.integers(0, 4))],
            rng.random(rng.integers(0, 30)).round(2).tolist(),
        )
        for _ in range(20)
    ]
    fps = [s for slide in slides for s in slide.false_positives]
    tps = [s or 0 for slide in slides for s in slide.lesions]
    total_fps, total_tps = [], []
    for threshold in sorted(set(fps + tps))[1:]:
        total_fps.append((np.asarray(fps) >= threshold).sum())
        total_tps.append((np.asarray(tps) >= threshold).sum())
    total_fps = np.array([*total_fps, 0]) / len(slides)
    total_tps = np.array([*total_tps, 0]) / len(tps)
    want = np.interp(RATES, total_fps[::-1], total_tps[::-1])
    result = froc(slides, official=True)
    np.testing.assert_allclose(result.at_rates, want)
    assert result.score == pytest.approx(want.mean())


@pytest.fixture
def case(tmp_path):
    """Detections and truth as files: a tumour slide as polygons and mask, and a normal one."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "detections").mkdir()
    squares = [[50, 50, 110, 110], [200, 50, 240, 90], [60, 200, 120, 260], [300, 200, 306, 206]]
    polygons = [
        {"vertices": [[x0 * SIDE, y0 * SIDE], [x1 * SIDE, y0 * SIDE], [x1 * SIDE, y1 * SIDE], [x0 * SIDE, y1 * SIDE]]}
        for x0, y0, x1, y1 in squares
    ]
    hole = {"vertices": [[75 * SIDE, 215 * SIDE], [105 * SIDE, 215 * SIDE], [105 * SIDE, 245 * SIDE]]}
    (tmp_path / "truth" / "tumor_1.json").write_text(json.dumps({"positive": polygons, "negative": [hole]}))
    found = [at(0.9, 80, 80), at(0.5, 230, 90), at(0.8, 5, 5), at(0.99, 203, 303)]
    write_csv(tmp_path / "detections" / "tumor_1.csv", found)
    write_csv(tmp_path / "detections" / "normal_1.csv", [at(0.4, 1, 1)])
    return tmp_path


def test_froc_from_the_command_line(case, capsys):
    words = ["froc", "--detections", str(case / "detections"), "--truth", str(case / "truth")]
    assert main([*words, "--out", str(case / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 slides, 3 lesions (1 regions of isolated tumour cells left out)" in said
    # .9: 0, 1/3;  .8: 1/2, 1/3;  .5: 1/2, 2/3;  .4: 1, 2/3
    assert "0.333  0.667  0.667  0.667  0.667  0.667  0.611" in said
    assert (case / "out" / "froc.png").stat().st_size > 1000
    lines = (case / "out" / "froc.csv").read_text().splitlines()
    assert lines[1].startswith("detections,0.333333,0.666667")


def test_slides_are_paired_by_name_and_none_is_forgotten(case, capsys):
    words = ["froc", "--detections", str(case / "detections"), "--truth", str(case / "truth")]
    write_csv(case / "detections" / "tumor_2.csv", [])
    assert main(words) == 3
    assert "has no annotation of tumor_2" in capsys.readouterr().err
    (case / "detections" / "tumor_2.csv").unlink()
    (case / "truth" / "tumor_3.json").write_text("{}")
    assert main(words) == 2
    assert "slides without detections (tumor_3.json)" in capsys.readouterr().err


def test_polygons_and_masks_give_the_same_truth(case):
    import tifffile

    mask = read_annotation(case / "truth" / "tumor_1.json").mask((300, 400), SIDE)
    big = np.repeat(np.repeat(mask, 4, 0), 4, 1).astype(np.uint8)
    tifffile.imwrite(case / "mask.tif", big, tile=(64, 64))
    np.testing.assert_array_equal(read_mask(case / "mask.tif", (300, 400)), mask)
    assert abs(int(mask[40:120, 40:120].sum()) - 3600) <= 130
    assert not mask[225, 95]
    xml = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate([(0, 0), (99, 0), (99, 99)]))
    head = "<ASAP_Annotations><Annotations>"
    text = f'{head}<Annotation PartOfGroup="_0"><Coordinates>{xml}</Coordinates></Annotation>'
    text += (
        f'<Annotation PartOfGroup="_2"><Coordinates>{xml}</Coordinates></Annotation></Annotations></ASAP_Annotations>'
    )
    (case / "a.xml").write_text(text)
    annotation = read_annotation(case / "a.xml")
    assert (len(annotation.lesions), len(annotation.holes)) == (1, 1)
    ring = [[0, 0], [90, 0], [90, 90], [0, 0]]
    inner = [[10, 5], [20, 5], [20, 9], [10, 5]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring, inner]}, "properties": {}}
    (case / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    annotation = read_annotation(case / "a.geojson")
    assert (len(annotation.lesions), len(annotation.holes)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", "<x"),
        ("a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><x/>'),
        ("a.json", "[1]"),
        ("a.json", "{"),
        ("a.txt", ""),
    ],
)
def test_bad_annotations_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: "):
        read_annotation(tmp_path / name)


@needs_data
def test_camelyon_s_own_annotations():
    for path in sorted((DATA / "asap_xml_rebuilt").glob("*.xml")):
        assert read_annotation(path).lesions
    annotation = read_annotation(DATA / "jsons" / "Tumor_001.json")
    high = np.max([p.max(0) for p in annotation.lesions], axis=0)
    mask = annotation.mask((int(high[1] / 32) + 20, int(high[0] / 32) + 20), 32)
    regions = evaluation_regions(mask)
    assert regions.labels.max() >= 1
