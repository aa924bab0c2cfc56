"""Files and folders: the same numbers as in training, masks in three formats, resumption, bad images, ranks."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import random_pixels, write_dicom
from PIL import Image

from medmpi import models, nn
from medmpi.data import normalise, open_dataset, read_mask
from medmpi.infer.main import main
from medmpi.infer.results import percentiles
from medmpi.parallel import launch as launch_module


def infer(*words):
    """Runs in this process; the exit code."""
    if launch_module._guard is not None:
        launch_module._guard.stop = False
    return main([str(w) for w in words])


def table(out):
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_probabilities_are_those_of_the_training_data_path(classifier, tmp_path):
    run, data = classifier
    assert infer(run, data, "--out", tmp_path) == 0
    rows = {Path(r["file"]).relative_to(data).as_posix(): r for r in table(tmp_path)}
    assert len(rows) == 32
    saved = models.load(run)
    dataset = open_dataset(f"folder:{data}?bits=12", image_size=20, val_fraction=0)
    images, _ = dataset.splits["train"].read(np.arange(32))
    x = normalise(images, np.float32(saved.spec.mean), np.float32(saved.spec.std))
    (logits,), _ = saved.graph.forward(x, context=nn.Context(train=False))
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    found = np.array([[float(rows[name][f"p_{c}"]) for c in ("dark", "light")] for name in sorted(rows)])
    assert np.abs(found - expected).max() < 1e-4
    assert all(r["class"] == ("dark", "light")[int(p.argmax())] for r, p in zip(rows.values(), found, strict=True))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["files"] == 32
    times = summary["latency_ms"]["network_per_frame"]
    assert 0 < times["p50"] <= times["p99"] <= times["max"]


def test_temperature_and_threshold_of_the_run(classifier, tmp_path, capsys):
    """Those that validation chose, if they are of these weights; a number wins."""
    run, data = classifier
    assert infer(run, data, "--out", tmp_path / "plain") == 0
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    epoch = json.loads((mine / "test.json").read_text())["epoch"]
    chosen = {"epoch": epoch, "calibration": {"temperature": 2.0}, "points": {"Youden": {"threshold": 0.9}}}
    (mine / "evaluation.json").write_text(json.dumps(chosen))
    assert infer(mine, data, "--out", tmp_path / "run-out", "--threshold=youden") == 0
    assert "logits are divided by 2" in capsys.readouterr().out
    for before, after in zip(table(tmp_path / "plain"), table(tmp_path / "run-out"), strict=True):
        p, q = float(before["p_light"]), float(after["p_light"])
        odds = np.sqrt(np.clip(p / (1 - p), 1e-9, None)) if p < 1 else np.inf
        assert abs(q - odds / (1 + odds)) < 1e-3 or p > 0.999
        assert (after["class"] == "light") == (p >= 0.9)
    summary = json.loads((tmp_path / "run-out" / "summary.json").read_text())
    assert summary["temperature"] == 2.0
    assert abs(summary["threshold"] - 0.75) < 1e-9, "the odds of 9 to 1, their root 3 to 1"
    assert infer(mine, data, "--out", tmp_path / "number", "--temperature=1", "--threshold=0.5") == 0
    assert [r["p_light"] for r in table(tmp_path / "number")] == [r["p_light"] for r in table(tmp_path / "plain")]
    (mine / "evaluation.json").write_text(json.dumps({**chosen, "epoch": epoch + 1}))  # of other weights
    assert infer(mine, data, "--out", tmp_path / "other", "--threshold=youden") == 2
    assert "has no evaluation.json with this operating point" in capsys.readouterr().err
    assert infer(mine, data, "--out", tmp_path / "other") == 0
    assert [r["p_light"] for r in table(tmp_path / "other")] == [r["p_light"] for r in table(tmp_path / "plain")]
    assert infer(mine, data, "--out", tmp_path / "x", "--threshold=1.5") == 2


def test_a_second_start_does_what_is_missing(classifier, tmp_path, capsys):
    run, _ = classifier
    for i in range(4):
        Image.fromarray(random_pixels((24, 20), seed=i)).save(tmp_path / f"{i}.png")
    out = tmp_path / "out"
    assert infer(run, tmp_path, "--out", out) == 0
    (tmp_path / "4.png").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((tmp_path / "3.png").read_bytes()[:-30])
    capsys.readouterr()
    assert infer(run, tmp_path, "--out", out) == 3
    said = capsys.readouterr()
    assert "4 of 6 files have results already" in said.out
    assert "1 of 6 files could not be used" in said.err
    rows = table(out)
    assert len(rows) == 6
    assert "truncated" in rows[-1]["error"]
    Image.fromarray(random_pixels((24, 20), seed=9)).save(tmp_path / "bad.png")
    with (out / "results" / "rank0.jsonl").open("a") as file:
        file.write('{"file": "cut sho')  # as a kill may leave it
    assert infer(run, tmp_path, "--out", out) == 0
    assert not any(r["error"] for r in table(out))


def test_volumes_keep_their_affine(segmenter, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    run, data = segmenter
    assert infer(run, data / "images", "--out", tmp_path, "--masks=nifti,png") == 0
    agreement = []
    for i in range(8):
        source, found = (nibabel.load(p / f"v{i}.nii.gz") for p in (data / "labels", tmp_path / "masks"))
        assert np.array_equal(source.affine, found.affine)
        assert source.shape == found.shape
        a, b = np.asarray(source.dataobj) > 0, np.asarray(found.dataobj) > 0
        agreement.append(2 * (a & b).sum() / max((a.sum() + b.sum()), 1))
        slices = np.concatenate([read_mask(tmp_path / "masks" / f"v{i}_{k:04}.png") for k in range(6)])
        assert np.array_equal(slices, read_mask(tmp_path / "masks" / f"v{i}.nii.gz"))
    assert np.mean(agreement) > 0.7, "the network has learned, and its masks lie where the labels do"
    rows = table(tmp_path)
    assert len(rows) == 48
    assert int(rows[2]["pixels_background"]) + int(rows[2]["pixels_foreground"]) == 20 * 24
    assert float(rows[2]["pixel_mm2"]) == 3.0


def test_dicom_segmentation_object(segmenter, tmp_path, recwarn):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    run, _ = segmenter
    pixels = np.zeros((40, 30), np.uint16)
    pixels[10:25, 8:20] = 3000
    source = write_dicom(tmp_path / "x.dcm", pixels, patient="Secret", bits=12, PixelSpacing=[0.5, 0.5])
    assert infer(run, source, "--out", tmp_path / "out", "--masks=seg,png,nifti") == 0
    found = pydicom.dcmread(tmp_path / "out" / "masks" / "x.seg.dcm")
    assert found.Modality == "SEG"
    assert found.PatientID == "Secret"
    assert found.SegmentSequence[0].SegmentLabel == "foreground"
    assert found.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    assert np.array_equal(found.pixel_array.reshape(40, 30), read_mask(tmp_path / "out" / "masks" / "x.png")[0])
    picture = tmp_path / "y.png"
    Image.fromarray(pixels).save(picture)
    assert infer(run, picture, "--out", tmp_path / "out2", "--masks=seg") == 3
    assert "this is none" in table(tmp_path / "out2")[0]["error"]
    assert not [w for w in recwarn if "Secret" in str(w.message)]


def test_segmentation_objects_of_what_has_no_place_in_space(segmenter, tmp_path):
    """A plain picture's object is read by highdicom; frames that DICOM-SEG cannot hold are an error, not lost."""
    highdicom = pytest.importorskip("highdicom")
    run, _ = segmenter
    pixels = np.zeros((3, 40, 30), np.uint16)
    pixels[:, 10:25, 8:20] = 3000
    write_dicom(tmp_path / "in" / "one.dcm", pixels[0], bits=12, PixelSpacing=[0.5, 0.5])
    write_dicom(tmp_path / "in" / "three.dcm", pixels, bits=12)
    Image.fromarray(pixels[0]).save(tmp_path / "in" / "picture.png")
    assert infer(run, tmp_path / "in", "--out", tmp_path / "out", "--masks=seg,png") == 3
    errors = {Path(r["file"]).name: r["error"] for r in table(tmp_path / "out")}
    assert not errors["one.dcm"] + errors["picture.png"]
    assert "3 frames are no multi-frame object" in errors["three.dcm"]
    found = highdicom.seg.segread(tmp_path / "out" / "masks" / "one.seg.dcm")
    assert found.pixel_array.shape == (40, 30)
    assert (tmp_path / "out" / "masks" / "picture.png").is_file()


def test_a_volume_of_two_axes(segmenter, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    run, _ = segmenter
    affine = np.diag([2.0, 3, 1, 1])
    nibabel.save(nibabel.Nifti1Image(np.arange(600, dtype=np.int16).reshape(20, 30), affine), tmp_path / "two.nii")
    assert infer(run, tmp_path / "two.nii", "--out", tmp_path / "out") == 0
    found = nibabel.load(tmp_path / "out" / "masks" / "two.nii.gz")
    assert found.shape == (20, 30)
    assert np.array_equal(found.affine, affine)


def test_images_that_make_no_sense(classifier, segmenter, tmp_path):
    pytest.importorskip("nibabel")
    Image.fromarray(np.array([[5]], np.uint8)).save(tmp_path / "one.png")
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "flat.png")
    bad = np.ones((6, 6), np.float32)
    bad[2, 2] = np.nan
    Image.fromarray(bad).save(tmp_path / "nan.tif")
    (tmp_path / "word.png").write_bytes(b"PK" + bytes(90))
    for run, _ in (classifier, segmenter):
        out = tmp_path / f"out-{run.parent.name}"
        assert infer(run, tmp_path, "--out", out) == 3
        rows = {Path(r["file"]).name: r for r in table(out)}
        assert not rows["one.png"]["error"]
        assert not rows["flat.png"]["error"]
        assert "NaN or infinite" in rows["nan.tif"]["error"]
        assert "not a PNG" in rows["word.png"]["error"]


def test_usage(classifier, tmp_path, capsys):
    run, data = classifier
    for words, code, text in (
        ((run, data), 2, "--out is missing"),
        ((run, "--out", tmp_path / "o"), 2, "either INPUT files or folders"),
        ((run, data, "--out", tmp_path / "o", "--watch", data), 2, "either INPUT files or folders"),
        ((run, data, "--out", tmp_path / "o", "--masks=jpg"), 2, "--masks is jpg"),
        ((run, tmp_path / "none", "--out", tmp_path / "o"), 2, "no such file or folder"),
        ((run, "--out", tmp_path / "o", "--listen=99999"), 2, "expected a port"),
        ((tmp_path / "none", data, "--out", tmp_path / "o"), 1, "does not exist"),
        ((run, "--out", tmp_path / "o", "--watch", tmp_path / "none"), 2, "no such folder"),
    ):
        assert infer(*words) == code
        assert text in capsys.readouterr().err


def test_measure(classifier, tmp_path, capsys):
    run, _ = classifier
    assert infer(run, "--measure", "--images=20", "--limit-ms=1000", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    for arrivals in ("regular intervals", "random"):
        assert re.search(rf"up to [\d.]+ images/s at {arrivals} with 99 % within 1000 ms", said)
    content = json.loads((tmp_path / "latency.json").read_text())
    assert content["image_ms"]["p50"] > 0
    assert {r["arrivals"] for r in content["rates"]} == {"regular", "random"}
    for rate in content["rates"]:
        assert rate["kept"] == (rate["late"] <= 1), "of 100 images one may be late"
        assert (rate["late"] == 0) == (rate["max"] <= 1000)
    kept = [r["images_per_s"] for r in content["rates"] if r["kept"] and r["arrivals"] == "random"]
    assert content["images_per_s_within_limit"]["random"] == max(kept)
    assert (tmp_path / "latency.png").stat().st_size > 1000


def test_percentiles():
    found = percentiles(list(range(1, 101)))
    assert (found["mean"], found["p50"], found["max"]) == (50.5, 50.5, 100)
    assert percentiles([]) == {}


def test_ranks_share_the_files(classifier, tmp_path):
    run, data = classifier
    beside = Path(sys.executable).with_name("mpirun")
    command = [str(beside) if beside.exists() else "mpirun", "-n", "2", sys.executable, "-m", "medmpi.infer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, run, data, "--out", tmp_path / "two"],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert infer(run, data, "--out", tmp_path / "one") == 0
    one, two = (
        [{k: v for k, v in r.items() if k != "network_ms"} for r in table(tmp_path / n)] for n in ("one", "two")
    )
    keys = [k for k in one[0] if not k.startswith("p_")]
    assert [[r[k] for k in keys] for r in one] == [[r[k] for k in keys] for r in two]
    numbers = np.array([[[float(r[f"p_{c}"]) for c in ("dark", "light")] for r in rows] for rows in (one, two)])
    assert np.abs(numbers[0] - numbers[1]).max() < 1e-4  # another algorithm may be the faster one
