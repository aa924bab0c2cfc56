"""CBIS-DDSM on a small look-alike of its tree: three readings, swapped columns, and patients on both sides."""

import csv

import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from medmpi.data import DataError, class_counts, open_dataset
from medmpi.data.mammogram import breast_mask, largest_part

pytest.importorskip("pydicom")
COLUMNS = {
    "mass": ["patient_id", "breast_density", "left or right breast", "image view", "abnormality id"],
    "calc": ["patient_id", "breast density", "left or right breast", "image view", "abnormality id"],
}
REST = ["abnormality type", "assessment", "pathology", "subtlety"]
PATHS = ["image file path", "cropped image file path", "ROI mask file path"]
PATHOLOGIES = ["BENIGN", "MALIGNANT", "BENIGN_WITHOUT_CALLBACK"]


def _mammogram(source, i):
    """A film of 96 x 80: real pixels where there are some, else an ellipse of tissue."""
    if source is not None:
        return np.ascontiguousarray(source[i % len(source)][16:112, 24:104])
    y, x = np.mgrid[:96, :80]
    tissue = ((y - 48) / 40) ** 2 + (x / 55) ** 2 < 1
    return np.where(tissue, 90 + 40 * np.sin(x / 5 + i) + y / 4, 2).astype(np.uint8)


def _write(path, pixels, form, patient):
    if form == "dicom":
        return write_dicom(path.with_suffix(".dcm"), pixels.astype(np.uint16) * 257, patient=patient)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def make_tree(root, form="dicom", source=None, per_split=None):
    """12 training and 6 test patients of masses and as many of calcifications, one abnormality each, or two."""
    number = 0
    for kind in ("mass", "calc"):
        for split, patients in (per_split or {"train": 12, "test": 6}).items():
            rows = []
            for p in range(patients):
                patient = f"P_{kind}_{split}_{p:05}"
                name = f"{kind.title()}-{'Training' if split == 'train' else 'Test'}_{patient}_LEFT_CC"
                film = _mammogram(source, number)
                series = f"1.3.6.1.{number}"
                _write(root / name / "1.2.3" / series / "1-1", film, form, name)
                for k in range(1 + (p == 0)):
                    top, left = 30 + 20 * k, 20
                    mask = np.zeros_like(film)
                    mask[top : top + 14, left : left + 12] = 255
                    crop = film[top - 2 : top + 16, left - 2 : left + 14]
                    there = f"{name}_{k + 1}/1.2.3/{series}.{k + 1}"
                    # Both in one folder, in either order, as in the archive.
                    first, second = (crop, mask) if p % 2 else (mask, crop)
                    _write(root / there / "1-1", first, form, name)
                    _write(root / there / "1-2", second, form, name)
                    values = [patient, "2", "LEFT", "CC", str(k + 1), "calcification" if kind == "calc" else "mass"]
                    values += ["4", PATHOLOGIES[p % 3], "3", f"{name}/9.9/{series}/000000.dcm"]
                    values += [f"{there}/000000.dcm", f"{there}/000001.dcm\n"]
                    rows.append(values)
                number += 1
            with (root / f"{kind}_case_description_{split}_set.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*COLUMNS[kind], *REST, *PATHS])
                writer.writerows(rows)
    return root


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "CBIS-DDSM")


def _total(dataset):
    return sum(class_counts(dataset, split) for split in dataset.splits).tolist()


def test_two_three_and_five_classes(tree):
    two = open_dataset(f"cbis-ddsm:{tree}", image_size=32)
    assert two.classes == ("benign", "malignant")
    assert _total(two) == [28, 12]
    assert len(two.splits["test"]) == 14
    three = open_dataset(f"cbis-ddsm:{tree}?classes=3", image_size=32)
    assert three.classes == ("benign", "benign_without_callback", "malignant")
    assert _total(three) == [16, 12, 12]
    five = open_dataset(f"cbis-ddsm:{tree}?classes=5", image_size=32)
    assert five.classes[0] == "normal"
    assert _total(five)[1:] == [14, 14, 6, 6]
    assert _total(five)[0] > 25, "a normal piece for nearly every crop"
    groups = [set(split.groups) for split in five.splits.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    mass = open_dataset(f"cbis-ddsm:{tree}?type=mass", image_size=32)
    assert _total(mass) == [14, 6]
    assert "benign" in two.describe_classes()


def test_swapped_columns_do_not_matter(tree):
    """Crops show tissue; a mask would be black or white."""
    dataset = open_dataset(f"cbis-ddsm:{tree}", image_size=16)
    for split in dataset.splits.values():
        images, _ = split.read(np.arange(len(split)))
        assert all(len(np.unique(image)) > 5 for image in images)


def test_segmentation_of_full_mammograms(tree):
    dataset = open_dataset(f"cbis-ddsm:{tree}", task="segmentation", image_size=(96, 80))
    assert dataset.classes == ("background", "abnormality")
    assert sum(len(s) for s in dataset.splits.values()) == 36
    areas = np.concatenate([s.read(np.arange(len(s)))[1].sum(axis=(1, 2)) for s in dataset.splits.values()])
    assert set(areas.tolist()) == {14 * 12, 2 * 14 * 12}
    full = open_dataset(f"cbis-ddsm:{tree}?images=full", image_size=32)
    assert sum(_total(full)) == 36


def test_converted_pictures_of_real_pixels(tmp_path, real_data):
    source = np.load(real_data("mammograms") / "minimias_128_all322.npz")
    images = source[next(k for k in source.files if source[k].ndim == 3)]
    tree = make_tree(tmp_path / "png", "png", images)
    dataset = open_dataset(f"cbis-ddsm:{tree}?classes=5", image_size=32)
    assert _total(dataset)[1:] == [14, 14, 6, 6]


def test_patient_on_both_sides(tree):
    table = tree / "calc_case_description_test_set.csv"
    table.write_text(table.read_text().replace("P_calc_test_00003,", "P_mass_train_00001,"))
    with pytest.raises(DataError, match=r"1 of 35 patients .* in train and in test.*give \?overlap=test or type="):
        open_dataset(f"cbis-ddsm:{tree}", image_size=32)
    for side, expected in (("test", (25, 14)), ("train", (26, 13))):
        dataset = open_dataset(f"cbis-ddsm:{tree}?overlap={side}", image_size=32)
        test = len(dataset.splits["test"])
        assert (_sum(dataset) - test, test) == expected
    assert _sum(open_dataset(f"cbis-ddsm:{tree}?type=mass", image_size=32)) == 20


def _sum(dataset):
    return sum(len(split) for split in dataset.splits.values())


def test_what_is_missing_is_named(tree, tmp_path):
    folder = sorted(tree.glob("Mass-Training_P_mass_train_00004_LEFT_CC_1"))[0]
    mask = sorted(folder.rglob("*.dcm"))[0]
    mask.unlink()
    with pytest.raises(DataError, match=r"mass_case_description_train_set.csv: the mask of .*00004.* is missing"):
        open_dataset(f"cbis-ddsm:{tree}", image_size=32)
    dataset = open_dataset(f"cbis-ddsm:{tree}?bad=skip", image_size=32)
    assert len(dataset.skipped) == 1
    with pytest.raises(DataError, match="no \\*case_description"):
        open_dataset(f"cbis-ddsm:{tmp_path / 'CBIS-DDSM' / folder.name}")
    with pytest.raises(ValueError, match="classes=4"):
        open_dataset(f"cbis-ddsm:{tree}?classes=4")
    with pytest.raises(ValueError, match="needs images=crop"):
        open_dataset(f"cbis-ddsm:{tree}?classes=5,images=full")


def test_largest_part_and_breast():
    scipy = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random((40, 50)) < 0.55
        labels, count = scipy.label(mask)
        sizes = np.bincount(labels.ravel())[1:]
        found = largest_part(mask)
        assert found.sum() == sizes.max()
        assert count
        assert len(np.unique(labels[found])) == 1
    film = _mammogram(None, 0)
    film[2:8, 60:76] = 255  # a label
    mask = breast_mask(film)
    assert not mask[2:8, 66:76].any()
    assert mask[48, 10]
    assert breast_mask(np.full((9, 9), 3, np.uint8)).all()
