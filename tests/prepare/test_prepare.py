"""The command on folders: results, manifest, resumption after a kill, shards, arrays of tasks, bad files."""

import csv
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_files import random_pixels, write_dicom
from PIL import Image
from processes import ranks_of

from medmpi import behind
from medmpi.data import open_dataset
from medmpi.parallel import launch as launch_module
from medmpi.prepare.main import main

pytest.importorskip("pydicom")


def prepare(*words):
    """Runs in this process; the exit code."""
    if launch_module._guard is not None:
        launch_module._guard.stop = False
    return main([str(w) for w in words])


@pytest.fixture
def folder(tmp_path):
    """Two classes of six 12-bit DICOM files of 48x40."""
    root = tmp_path / "in"
    for k, name in enumerate(("benign", "malignant")):
        for i in range(6):
            pixels = random_pixels((48, 40), seed=10 * k + i)
            write_dicom(root / name / f"{i}.dcm", pixels, patient=f"{name}{i}", bits=12, PixelSpacing=[0.2, 0.1])
    return root


def digests(out):
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted([*out.rglob("results/**/*.png"), *out.glob("*.h5")])
    }


def test_preview_of_what_has_no_levels_of_its_own(tmp_path):
    """Fractions in a TIFF are shown from their smallest to their largest value."""
    (tmp_path / "in").mkdir()
    values = np.linspace(-3, 5, 48 * 40, dtype=np.float32).reshape(48, 40)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "in" / "x.tif")
    assert prepare(tmp_path / "in", "--out", tmp_path / "out", "--window=full", "--nan=fill") == 0
    preview = np.asarray(Image.open(tmp_path / "out" / "previews" / "x.png").convert("L"))
    assert preview[16:64, :40].max() > 250


def test_results_manifest_and_previews(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(folder, "--out", out, "--window=bits", "--bits=16", "--previews=3") == 0
    result = np.asarray(Image.open(out / "results" / "benign" / "0.png"))
    assert result.dtype == np.uint16
    assert np.array_equal(result, np.floor(random_pixels((48, 40), seed=0) / 4095 * 65535 + 0.5))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["bits"] == 16
    assert len(manifest["units"]) == 12
    for unit in manifest["units"]:
        assert unit["inputs"][0]["steps"] == ["window bits to 16 bits"]
        assert unit["inputs"][0]["spacing_mm"] == [0.2, 0.1]
        for output in unit["outputs"]:
            assert hashlib.sha256((out / output["file"]).read_bytes()).hexdigest() == output["sha256"]
    assert "benign0" not in (out / "manifest.json").read_text(), "no patient"
    assert len(list((out / "previews").glob("*.png"))) == 3
    assert not list(out.rglob("*.tmp*"))
    assert "12 results" in capsys.readouterr().out
    dataset = open_dataset(f"folder:{out / 'results'}?bits=16")
    assert dataset.classes == ("benign", "malignant")
    from medmpi.data import read_image

    assert np.allclose(read_image(out / "results" / "benign" / "0.png").spacing, (0.2, 0.1), rtol=1e-3)


def test_bad_files_are_listed_and_the_rest_is_done(folder, tmp_path, capsys):
    bad = folder / "benign" / "3.dcm"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-50])
    (folder / "malignant" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    out = tmp_path / "out"
    assert prepare(folder, "--out", out) == 3
    rows = list(csv.DictReader((out / "bad.csv").read_text().splitlines()))
    assert [Path(r["file"]).name for r in rows] == ["3.dcm", "x.png"]
    assert "truncated" in rows[0]["error"]
    assert len(digests(out)) == 11
    assert "2 of 13 files could not be used" in capsys.readouterr().err
    bad.write_bytes(whole)  # mended
    (folder / "malignant" / "x.png").unlink()
    assert prepare(folder, "--out", out) == 0
    assert len(digests(out)) == 12


def test_done_units_are_kept_and_damaged_ones_made_anew(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(folder, "--out", out, "--contrast=clahe") == 0
    before = digests(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("results/**/*.png")}
    victim = out / "results" / "malignant" / "2.png"
    victim.write_bytes(victim.read_bytes()[:-20])
    write_dicom(folder / "benign" / "0.dcm", random_pixels((48, 40), seed=77), bits=12)
    capsys.readouterr()
    assert prepare(folder, "--out", out, "--contrast=clahe") == 0
    assert "10 of 12 units were there already" in capsys.readouterr().out
    after = digests(out)
    assert {k for k in after if after[k] != before[k]} == {"results/benign/0.png"}
    assert sum(p.stat().st_mtime_ns == t for p, t in times.items()) == 10
    assert prepare(folder, "--out", out, "--contrast=gamma:2") == 2
    assert "was prepared with other settings (contrast" in capsys.readouterr().err
    assert prepare(folder, "--out", folder) == 2
    assert "--out is an input" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert prepare(folder, "--out", tmp_path / "other") == 2
    assert "is not empty" in capsys.readouterr().err


def test_shards_are_a_data_set(folder, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--format=hdf5", "--shard-images=5", "--window=bits", "--image-size=32")
    assert prepare(folder, "--out", out, *flags) == 0
    assert sorted(digests(out)) == ["shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
    dataset = open_dataset(f"hdf5:{out}", val_fraction=0.2)
    assert dataset.classes == ("benign", "malignant")
    assert dataset.image_size == (32, 32)
    assert sum(len(s) for s in dataset.splits.values()) == 12
    assert all(len(set(s.groups)) == len(s) for s in dataset.splits.values())
    write_dicom(folder / "malignant" / "9.dcm", random_pixels((20, 20)), bits=12)
    assert prepare(folder, "--out", tmp_path / "o2", "--format=hdf5") == 3
    assert "give --image-size" in capsys.readouterr().err


def write_pairs(root, count, top=1):
    """Pictures of a bright rectangle with masks of it."""
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((60, 50), np.uint8)
        mask[20:40, 10 + i : 30] = 1
        Image.fromarray(mask * 150 + 20).save(root / "images" / f"{i}.png")
        Image.fromarray(mask * np.uint8(top)).save(root / "masks" / f"{i}_mask.png")


def test_masks_go_with_their_images(tmp_path):
    root = tmp_path / "in"
    write_pairs(root, 6)
    out = tmp_path / "out"
    assert prepare(root, "--out", out, "--crop=breast", "--image-size=32", "--fit=pad", "--denoise=median:3") == 0
    dataset = open_dataset(f"pairs:{out / 'results'}", val_fraction=0)
    images, masks = dataset.splits["train"].read(np.arange(6))
    assert np.corrcoef(images[..., 0].ravel() > 95, masks.ravel())[0, 1] > 0.9


def test_shards_carry_masks_and_splits(tmp_path, capsys):
    root = tmp_path / "in"
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        write_pairs(root / split, count, top=255)
    out = tmp_path / "out"
    assert prepare(root, "--out", out, "--format=hdf5", "--shard-images=3", "--image-size=32") == 0
    assert sorted(digests(out)) == ["test-00000.h5", "train-00000.h5", "train-00001.h5", "val-00000.h5"]
    dataset = open_dataset(f"hdf5:{out}")
    pairs = open_dataset(f"pairs:{root}", image_size=32)
    for name, count in (("train", 5), ("val", 2), ("test", 3)):
        images, masks = dataset.splits[name].read(np.arange(count))
        expected = pairs.splits[name].read(np.arange(count))
        assert np.array_equal(images, expected[0])
        assert np.array_equal(masks, expected[1])
        assert set(masks.ravel()) == {0, 1}
    (root / "train" / "masks" / "1_mask.png").unlink()
    assert prepare(root, "--out", tmp_path / "o2", "--format=hdf5") == 3
    assert "1.png: it has no mask, others have" in capsys.readouterr().err


def test_shards_carry_labels_of_splits(folder, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "validation"):
        shutil.copytree(folder, root / split)
    for file in (root / "validation").rglob("*.dcm"):  # other patients
        pixels = random_pixels((48, 40), seed=99)
        write_dicom(file, pixels, patient=f"v{file.parent.name}{file.stem}", bits=12)
    out = tmp_path / "out"
    assert prepare(root, "--out", out, "--format=hdf5") == 0
    dataset = open_dataset(f"hdf5:{out}")
    assert dataset.classes == ("benign", "malignant")
    assert [len(dataset.splits[s]) for s in ("train", "val", "test")] == [12, 12, 0]


def test_full_disk_ends_with_one_line_and_is_resumed(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    room = iter(range(6))

    def write(number, content):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(number, content)

    monkeypatch.setattr(behind, "_write_all", write)
    assert prepare(folder, "--out", out, "--previews=0") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob(".*.tmp*"))
    monkeypatch.undo()
    assert prepare(folder, "--out", out, "--previews=0") == 0
    assert len(digests(out)) == 12


def test_statistics_of_all_images(folder, tmp_path):
    out = tmp_path / "out"
    assert prepare(folder, "--out", out, "--normalise=dataset", "--window=bits") == 0
    levels = [np.floor(random_pixels((48, 40), seed=10 * k + i) / 4095 * 255 + 0.5) for k in (0, 1) for i in range(6)]
    mean, std = json.loads((out / "manifest.json").read_text())["mean_and_std"]
    assert np.allclose([mean, std], [np.mean(levels) / 255, np.std(levels) / 255])


def test_array_of_tasks_gives_the_same(folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert prepare(folder, "--out", whole) == 0
    for k in range(3):
        assert prepare(folder, "--out", parts, f"--shard={k}/3") == 0
    assert digests(parts) == digests(whole)
    assert not (parts / "manifest.json").exists()
    (parts / "results" / "benign" / "4.png").unlink()
    assert prepare(folder, "--out", parts) == 0
    assert digests(parts) == digests(whole)
    assert len(json.loads((parts / "manifest.json").read_text())["units"]) == 12


def test_names_that_would_collide(tmp_path):
    root = tmp_path / "in"
    for name in ("a.png", "a.tif", "b/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), len(name), np.uint8)).save(root / name)
    assert prepare(root, root / "a.png", "--out", tmp_path / "out") == 0
    assert len(digests(tmp_path / "out")) == 4


def _command(ranks, *words):
    beside = Path(sys.executable).with_name("mpirun")
    launcher = [str(beside) if beside.exists() else "mpirun", "-n", str(ranks)]
    return [*launcher, sys.executable, "-m", "medmpi.prepare", *map(str, words)]


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def test_killed_and_resumed_on_two_ranks(tmp_path):
    """kill -9 of a rank, then of all: the resumed run does only what is missing; the results are those of one rank."""
    root = tmp_path / "in"
    rng = np.random.default_rng(0)
    base = rng.integers(0, 4096, (640, 640)).astype(np.uint16)
    for i in range(60):
        write_dicom(root / f"{i:02}.dcm", np.roll(base, i, axis=0), bits=12)
    (root / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM")
    flags = ("--contrast=clahe", "--denoise=gaussian:3,median:7", "--previews=0", "--timeout=60")
    assert prepare(root, "--out", tmp_path / "whole", *flags) == 3
    out = tmp_path / "out"
    process = subprocess.Popen(
        _command(2, root, "--out", out, *flags), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.monotonic() + 60
    while len(list(out.rglob("results/*.png"))) < 5 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    pids = ranks_of("medmpi.prepare", str(out))
    assert process.poll() is None, "finished before it could be killed"
    os.kill(pids[-1], signal.SIGKILL)
    output = process.communicate(timeout=60)[0].decode()
    done = len(digests(out)) if out.exists() else 0
    assert process.returncode not in (0, 3), output
    run = subprocess.run(
        _command(2, root, "--out", out, *flags),
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 3, run.stderr
    assert digests(out) == digests(tmp_path / "whole")
    assert not list(out.rglob(".*.tmp*"))
    if done > 10:
        assert "units were there already" in run.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["units"]) == 61
    assert len(manifest["bad"]) == 1
