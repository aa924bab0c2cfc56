"""Patients are on one side of a split, whoever made it."""

import numpy as np
import pytest
from PIL import Image

from medmpi.data import DataError, check_groups, open_dataset
from medmpi.data.groups import group_split


def _pictures(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def patients(tmp_path):
    """Two classes, ten patients each, three pictures each."""
    names = [f"{c}/p{p}/{i}" for c in ("benign", "malignant") for p in range(10) for i in range(3)]
    _pictures(tmp_path, names)
    return tmp_path


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_are_shared_out(seed):
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 30, 200))
    labels = groups % 2
    parts = group_split(labels, groups, np.arange(200), fractions=(0.2, 0.2), seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(200))
    sets = [set(groups[p].tolist()) for p in parts]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert all(len({g % 2 for g in s}) == 2 for s in sets)


def test_folders_as_groups(patients):
    dataset = open_dataset(f"folder:{patients}?groups=parent", val_fraction=0.2)
    sets = [set(split.groups) for split in dataset.splits.values()]
    assert [len(s) for s in sets] == [12, 4, 4]
    assert len(set().union(*sets)) == 20
    assert "36 train (of 12 groups)" in dataset.describe()
    assert dataset.describe_classes() == "benign 18/6/6, malignant 18/6/6 (train/val/test)"
    assert open_dataset(f"folder:{patients}").splits["train"].groups is None


def test_a_table_of_groups(patients):
    lines = ["file,patient"]
    for file in sorted(patients.rglob("*.png")):
        name = file.relative_to(patients).as_posix()
        lines.append(f"{name},{'twin' if 'p1' in name else name[:-5]}")
    (patients / "who.csv").write_text("\n".join(lines))
    dataset = open_dataset(f"folder:{patients}?groups=who.csv", val_fraction=0.2)
    with_twin = [name for name, split in dataset.splits.items() if "twin" in split.groups]
    assert len(with_twin) == 1
    (patients / "who.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"p9/2.png: who.csv has no line for it"):
        open_dataset(f"folder:{patients}?groups=who.csv")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(f"folder:{patients}?groups=nobody.csv")


def test_a_planted_patient_is_found(tmp_path):
    _pictures(tmp_path, [f"{s}/{c}/p{i}/0" for s in ("train", "test") for c in "ab" for i in range(4)])
    lines = [
        f"{f.relative_to(tmp_path).as_posix()},{f.parts[-4]}-{f.parent.name}" for f in sorted(tmp_path.rglob("*.png"))
    ]
    (tmp_path / "who.csv").write_text("file,group\n" + "\n".join(lines))
    open_dataset(f"folder:{tmp_path}?groups=who.csv")
    lines[0] = lines[0].replace("test-p0", "train-p2")
    (tmp_path / "who.csv").write_text("file,group\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"1 of 8 patients .* in train and in test.*train image 2 and test image 0"):
        open_dataset(f"folder:{tmp_path}?groups=who.csv")


def test_groups_of_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    groups = np.array([f"p{i // 4}" for i in range(40)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2, groups=groups)
    dataset = open_dataset(f"npz:{tmp_path / 'a.npz'}", val_fraction=0.2)
    sets = [set(split.groups) for split in dataset.splits.values()]
    assert [len(s) for s in sets] == [6, 2, 2]
    arrays = {f"{s}_{k}": v[at] for s, at in (("train", slice(0, 30)), ("test", slice(28, 40)))
              for k, v in (("images", images), ("labels", np.arange(40) % 2), ("groups", groups))}  # fmt: skip
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(DataError, match="1 of 10 patients"):
        open_dataset(f"npz:{tmp_path / 'b.npz'}")
    np.savez(tmp_path / "c.npz", images=images, labels=np.arange(40) % 2, groups=groups[:3])
    with pytest.raises(DataError, match="expected 40 numbers or strings"):
        open_dataset(f"npz:{tmp_path / 'c.npz'}")


def test_guard():
    check_groups("x", {"train": ["a", "b"], "val": ["c"], "test": None})
    with pytest.raises(DataError, match="in val and in test"):
        check_groups("x", {"train": ["a"], "val": ["c", "d"], "test": ["d"]})


def test_too_few_groups(tmp_path):
    _pictures(tmp_path, [f"{c}/p/{i}" for c in "ab" for i in range(9)])
    with pytest.raises(DataError, match=r"samples are of 2 patients .* 3 parts need as many"):
        open_dataset(f"folder:{tmp_path}?groups=parent")
    assert len(open_dataset(f"folder:{tmp_path}?groups=parent", val_fraction=0).splits["train"]) == 18
