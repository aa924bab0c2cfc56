"""Intervals, thresholds, calibration, cards and explanations of a run."""

from __future__ import annotations

import csv
import hashlib
import json
import math

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn import metrics as sk

from medmpi.train.assess import assess, predictions_csv
from medmpi.train.evaluate import ClassOutputs, MaskOutputs


def outputs(n=400, k=2, seed=0, steep=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.standard_normal((n, k))
    logits[np.arange(n), labels] += 1.5
    return ClassOutputs(labels, (steep * logits).astype(np.float32))


def test_two_classes():
    val, test = outputs(seed=1), outputs(seed=2)
    found = assess(("healthy", "ill"), test, val)
    odds = test.logits[:, 1] - test.logits[:, 0]
    area = found.auc["ill"]
    assert area.value == pytest.approx(sk.roc_auc_score(test.labels, odds))
    assert area.low < area.value < area.high
    assert found.average_precision["ill"].value == pytest.approx(sk.average_precision_score(test.labels, odds))
    assert found.accuracy.value == pytest.approx((test.logits.argmax(1) == test.labels).mean())
    assert found.calibration.temperature > 1.5
    assert found.calibration.ece_after < found.calibration.ece_before
    point = found.points["sensitivity 95 %"]
    on_val = (val.logits[:, 1] - val.logits[:, 0])[val.labels == 1] >= np.log(point.threshold / (1 - point.threshold))
    assert on_val.mean() >= 0.95  # chosen there, whatever it is on test
    default = found.points["default (0.5)"]
    assert default.accuracy.value == pytest.approx(found.accuracy.value)
    json.dumps(found.to_json())


def test_thresholds_do_not_look_at_test():
    val, test = outputs(seed=1), outputs(seed=2)
    shuffled = ClassOutputs(1 - test.labels, test.logits)
    chosen = [{n: p.threshold for n, p in assess(("a", "b"), t, val).points.items()} for t in (test, shuffled)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5


def test_certain_logits_keep_their_thresholds_apart():
    """Probabilities of 1 in float would merge samples that log-odds still order."""
    labels = np.array([0, 1, 0, 1, 1, 0] * 5)
    logits = np.stack([np.zeros(30), 50 + labels + np.arange(30) / 100], 1).astype(np.float32)
    found = assess(("a", "b"), ClassOutputs(labels, logits), ClassOutputs(labels, logits))
    assert found.auc["b"].value == 1
    assert found.points["Youden"].accuracy.value == 1


@pytest.mark.parametrize("val", [None, outputs(40, 4, seed=5)], ids=["without", "with"])
def test_more_classes_one_of_them_missing(val):
    test = outputs(60, 4)
    test.labels[test.labels == 3] = 2
    found = assess(("a", "b", "c", "d"), test, val)
    assert list(found.auc) == ["a", "b", "c", "mean"]
    assert found.auc["mean"].value == pytest.approx(np.mean([found.auc[n].value for n in "abc"]))
    assert found.points == {}
    assert (found.calibration is None) == (val is None)


def test_masks():
    confusions = np.array([[[90, 10], [10, 90]], [[180, 10], [5, 5]], [[200, 0], [0, 0]]])
    matches = np.zeros((3, 2, 5))
    matches[0, 1] = [3, 4, 2, 2.1, 1.8]
    found = assess(("background", "cell"), MaskOutputs(confusions, np.zeros((3, 3)), matches), None)
    assert found.dice["cell"].value == pytest.approx((0.9 + 10 / 25) / 2)  # the third image has none
    assert found.objects["cell"].f1 == pytest.approx(4 / 7)
    assert "foreground" not in found.dice
    assert found.dice_by_group == {}
    whole = assess(("background", "cell"), MaskOutputs(confusions, np.zeros((3, 3)), matches), None, ["p", "p", "q"])
    assert whole.dice_by_group["cell"].value == pytest.approx(2 * 95 / (110 + 115))  # the second patient has none
    assert found.to_json()["objects"]["cell"]["panoptic_quality"] == pytest.approx(3.6 / 7)


def test_intervals_are_of_patients_not_of_their_images():
    """The same image ten times over is no more certain than once."""
    once = outputs(60, seed=3)
    often = ClassOutputs(np.repeat(once.labels, 10), np.repeat(once.logits, 10, axis=0))
    patients = [f"patient {i}" for i in np.repeat(np.arange(60), 10)]
    single, naive = assess(("a", "b"), once, None), assess(("a", "b"), often, None)
    by_patient = assess(("a", "b"), often, None, patients)

    def width(interval):
        return interval.high - interval.low

    assert by_patient.auc["b"].method == "bootstrap by patient"
    assert by_patient.auc["b"].value == pytest.approx(single.auc["b"].value)
    assert width(by_patient.auc["b"]) == pytest.approx(width(single.auc["b"]), rel=0.3)
    assert width(naive.auc["b"]) < 0.5 * width(single.auc["b"])
    assert width(by_patient.accuracy) == pytest.approx(width(single.accuracy), rel=0.3)
    rows = list(csv.DictReader(predictions_csv(("a", "b"), {"test": often}, None, {"test": patients}).splitlines()))
    assert rows[15]["group"] == "patient 1"


def test_predictions_hold_every_sample():
    test = outputs(5, 3)
    text = predictions_csv(("a", "b", "c"), {"test": test}, 2.0)
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 5
    assert sum(float(rows[2][f"p({n})"]) for n in "abc") == pytest.approx(1)
    assert sum(float(rows[2][f"calibrated p({n})"]) for n in "abc") == pytest.approx(1)
    assert rows[0]["label"] == "abc"[test.labels[0]]


def test_many_classes_and_samples_cost_little(monkeypatch):
    monkeypatch.setattr("medmpi.train.assess._WORK", 1e4)
    test = outputs(300, 60)
    classes = [f"class {c}" for c in range(60)]
    found = assess(classes, test, None)
    assert math.isfinite(found.auc["mean"].value)
    assert math.isnan(found.auc["mean"].low)
    assert math.isfinite(found.auc["class 1"].low)
    head, first = predictions_csv(classes, {"test": test}, 2.0).splitlines()[:2]
    assert head.endswith("predicted,p(predicted),p(label),calibrated p(predicted),calibrated p(label)")
    assert first.count(",") == head.count(",")


def test_a_classifier_s_folder(tmp_path, capsys):
    assert tiny.train(f"--out={tmp_path}", "--report", "--data=phantom:size=16,samples=60,classes=2") == 0
    assert "95 % intervals: accuracy" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    for part in ("How certain", "Youden", "Calibration: divide", "Grad-CAM", "Against thresholds"):
        assert part in page, part
    found = json.loads((tmp_path / "evaluation.json").read_text())
    test = json.loads((tmp_path / "test.json").read_text())
    assert found["accuracy"]["value"] == pytest.approx(test["accuracy"])
    assert next(iter(found["auc"].values()))["value"] == pytest.approx(test["auc"])
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    right = [row["label"] == row["predicted"] for row in rows if row["split"] == "test"]
    assert np.mean(right) == pytest.approx(test["accuracy"])
    assert {row["split"] for row in rows} == {"val", "test"}
    card = (tmp_path / "model_card.md").read_text()
    digest = hashlib.sha256((tmp_path / "checkpoints" / "best.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert "samples only: look at the intervals" in card


def test_a_segmenter_s_folder_on_two_ranks(tmp_path):
    flags = ["--data=phantom:size=32,samples=24", "--model=unet", "--task=segmentation", "--width=4", "--epochs=1",
             "--batch-size=4", "--threads=1", "--report"]  # fmt: skip
    pages = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        done = tiny.launch(ranks, *flags, "--reproducible", f"--out={out}", tiny=False)
        assert done.returncode == 0, done.stderr
        pages.append(json.loads((out / "evaluation.json").read_text()))
    assert pages[0] == pages[1]
    assert 0 <= pages[0]["dice"]["foreground" if "foreground" in pages[0]["dice"] else "lesion"]["value"] <= 1
    assert "truth green, prediction red" in (tmp_path / "2" / "report.html").read_text()


def test_focal_loss_trains_and_validates_as_itself(tmp_path):
    assert tiny.train(f"--out={tmp_path}", "--focal-gamma=2", "--epochs=1", "--augment=none", "--quiet") == 0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert float(rows[0]["val_loss"]) < 0.75 * 1.0986  # of three classes by chance, times (1 - p)^2 on average


def test_names_of_classes_are_no_formulas_and_have_any_letters(tmp_path):
    rng = np.random.default_rng(0)
    names = ["$x$ & <y>", "健康", "unpaired $ and a very long name of a finding"]
    for name, label in zip(names, range(3), strict=True):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(16):
            Image.fromarray(rng.integers(0, 200 + 20 * label, (16, 16), np.uint8)).save(folder / f"{i}.png")
    assert tiny.train(f"--out={tmp_path / 'run'}", "--report", f"--data=folder:{tmp_path / 'data'}", "--epochs=1") == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "健康" in page
    assert "$x$ &amp; &lt;y&gt;" in page
