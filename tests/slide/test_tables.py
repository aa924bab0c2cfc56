"""The seed paper's tables IV and V from heatmaps, from the command line: strides beside each other."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest

from medmpi.slide.heatmap import SCHEMA, VERSION, load_heatmap
from medmpi.slide.main import main


def write_heatmap(path, scores, stride=16):
    """A finished heatmap of a slide of 0.243 um a pixel."""
    shape = [side * stride for side in scores.shape]
    meta = {
        "slide": path.name, "slide_id": "0" * 16, "level": 0, "downsample": 1.0, "level_shape": shape,
        "level0_shape": shape, "mpp": [0.243, 0.243], "stride": stride, "patch": 224, "classes": ["tumour"],
        "model": "0" * 16, "missing": [],
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs.update(schema=SCHEMA, schema_version=VERSION, meta=json.dumps(meta))
        file["scores"] = scores.astype(np.float32)[..., None]
        file["counts"] = np.ones(scores.shape, np.uint32)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Ten tumour slides, each with a lesion and isolated tumour cells, and ten normal ones, all with noise."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "heatmaps").mkdir()
    (folder / "truth").mkdir()
    rng = np.random.default_rng(0)
    labels = ["slide,label,patient"]
    for i in range(20):
        tumour = i < 10
        name = f"{'tumor' if tumour else 'normal'}_{i:03d}"
        scores = rng.random((168, 210)) * 0.3
        for _ in range(3):  # false alarms of a few points
            y, x = rng.integers(5, 160, 2)
            scores[y : y + 2, x : x + 2] = rng.uniform(0.3, 0.7)
        if tumour:
            squares = []
            for side, score in ((45, 0.9), (17, 0.8)):  # 175 and 66 um: a lesion and isolated tumour cells
                y, x = rng.integers(20, 60) + (60 if side == 17 else 0), rng.integers(20, 140)
                scores[y : y + side, x : x + side] = score + rng.random((side, side)) * 0.05
                a, b, c, d = (int(v) * 16 for v in (x, y, x + side, y + side))
                squares.append({"vertices": [[a, b], [c, b], [c, d], [a, d]]})
            (folder / "truth" / f"{name}.json").write_text(json.dumps({"positive": squares}))
        write_heatmap(folder / "heatmaps" / f"{name}.heatmap.h5", scores)
        labels.append(f"{name},{int(tumour)},p{i // 2}")
    (folder / "labels.csv").write_text("\n".join(labels))
    return folder


def test_froc_by_stride(slides, capsys):
    words = ["froc", "--heatmaps", str(slides / "heatmaps"), "--truth", str(slides / "truth"), "--strides"]
    words += ["16", "64", "128", "224", "--out", str(slides / "froc"), "--radius", "400", "--threshold", "0.35"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "20 slides, 10 lesions (6 regions of isolated tumour cells left out)" in said  # four touch the lesion
    assert "0.694" in said  # S4's beside it
    with (slides / "froc" / "froc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["detections"] for row in rows] == ["stride 16", "stride 64", "stride 128", "stride 224"]
    assert float(rows[0]["score"]) >= float(rows[-1]["score"]) > 0
    assert float(rows[0]["sensitivity_at_8"]) == 1
    assert (slides / "froc" / "froc.png").exists()


def test_auc_by_stride(slides, capsys):
    words = ["classify", "--heatmaps", str(slides / "heatmaps"), "--labels", str(slides / "labels.csv"), "--strides"]
    assert main([*words, "16", "224", "--out", str(slides / "auc"), "--trees", "20"]) == 0
    said = capsys.readouterr().out
    assert "stride   16: AUC 1.000" in said
    assert "S4: 0.893 (0.827, 0.960)" in said
    with (slides / "auc" / "slides-16.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert all((float(row["score"]) > 0.5) == (row["label"] == "1") for row in rows)
    assert float(rows[-1]["largest_area_0.5"]) == pytest.approx((45 * 16 * 0.243e-3) ** 2, rel=1e-4)


def test_unlabelled_slides_and_wrong_strides_are_refused(slides, tmp_path, capsys):
    words = ["classify", "--heatmaps", str(slides / "heatmaps"), "--out", str(tmp_path / "x"), "--labels"]
    (tmp_path / "labels.csv").write_text("slide,label\ntumor_000,1\n")
    assert main([*words, str(tmp_path / "labels.csv")]) == 3
    assert "has no label of normal_010" in capsys.readouterr().err
    assert main([*words, str(slides / "labels.csv"), "--strides", "24"]) == 2
    assert "multiple of the heatmap's 16" in capsys.readouterr().err
    both = ["--train", str(slides / "heatmaps")]
    assert main([*words, str(slides / "labels.csv"), *both]) == 3
    assert "keep them apart" in capsys.readouterr().err


def test_large_heatmaps_are_thinned_out_as_they_are_read(slides):
    path = slides / "heatmaps" / "tumor_001.heatmap.h5"
    heat = load_heatmap(path)
    for most, k in ((35280, 1), (35279, 2), (4000, 3), (10, 60)):
        thin = load_heatmap(path, most=most)
        np.testing.assert_array_equal(thin.of(), heat.of()[::k, ::k])
        assert thin.counts.shape == thin.of().shape
        assert thin.meta.stride == 16 * k


def test_detect_writes_a_csv_a_slide(slides, tmp_path):
    assert main(["detect", str(slides / "heatmaps"), "--out", str(tmp_path), "--radius", "400"]) == 0
    assert len(list(tmp_path.glob("*.csv"))) == 20
    heat = load_heatmap(slides / "heatmaps" / "tumor_000.heatmap.h5")
    line = (tmp_path / "tumor_000.csv").read_text().splitlines()[1]
    score, x, y = (float(v) for v in line.split(","))
    assert heat.of()[int(y / 16), int(x / 16)] == pytest.approx(score)
    words = ["froc", "--detections", str(tmp_path), "--truth", str(slides / "truth")]
    assert main(words) == 0
