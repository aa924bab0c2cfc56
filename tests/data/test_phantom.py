"""The built-in data set: repeatable, balanced, and neither trivial nor hopeless."""

import numpy as np
import pytest

from medmpi.data import class_counts, examples, open_dataset


def test_defaults():
    dataset = open_dataset("phantom")
    assert (dataset.task, dataset.channels, dataset.image_size) == ("classification", 1, (32, 32))
    assert dataset.classes == ("normal", "benign", "malignant")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 640, "val": 160, "test": 160}
    assert class_counts(dataset).tolist() == [214, 213, 213]
    images, labels = dataset.splits["train"].read([5, 0])
    assert images.shape == (2, 32, 32, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(labels, dataset.splits["train"].labels[[5, 0]])


def _read_all(dataset, split="train"):
    return dataset.splits[split].read(np.arange(len(dataset.splits[split])))


def test_seed_decides_and_samples_do_not_depend_on_how_many_follow():
    small, again, other = (open_dataset(f"phantom:samples={n}", seed=s) for n, s in ((70, 4), (70, 4), (70, 5)))
    for split in ("train", "val", "test"):
        assert np.array_equal(_read_all(small, split)[0], _read_all(again, split)[0])
    assert not np.array_equal(_read_all(small)[0], _read_all(other)[0])
    train, test = _read_all(small)[0], _read_all(small, "test")[0]
    assert not (train[: len(test)] == test).all(axis=(1, 2, 3)).any()


def test_options_and_image_size():
    dataset = open_dataset("phantom:size=48,samples=40,classes=4,channels=3", image_size=(24, 40))
    assert dataset.image_size == (24, 40)
    assert dataset.classes[3] == "calcification"
    assert _read_all(dataset)[0].shape == (40, 24, 40, 3)
    assert open_dataset("phantom:samples=16,classes=2").classes == ("normal", "malignant")


def test_segmentation_masks_mark_the_lesion():
    dataset = open_dataset("phantom:samples=60,size=48", task="segmentation")
    images, masks = _read_all(dataset)
    assert masks.dtype == np.uint8
    assert masks.shape == images.shape[:3]
    assert set(np.unique(masks)) == {0, 1, 2}
    same = open_dataset("phantom:samples=60,size=48")
    assert np.array_equal(masks.reshape(60, -1).max(axis=1), _read_all(same)[1])
    lesions = [i for i in range(60) if masks[i].any()]
    inside = np.mean([images[i][masks[i] > 0].mean() for i in lesions])
    outside = np.mean([images[i][masks[i] == 0].mean() for i in lesions])
    assert inside > outside + 20
    counts = class_counts(dataset)
    assert counts.sum() == masks.size
    assert counts[0] > counts[1:].sum() > 0


def test_examples_for_pictures():
    dataset = open_dataset("phantom:samples=30")
    drawn = examples(dataset, per_class=3)
    assert [name for name, _, _ in drawn] == list(dataset.classes)
    for k, (_, images, labels) in enumerate(drawn):
        assert images.shape == (3, 32, 32, 1)
        assert (labels == k).all()
    ((name, images, masks),) = examples(open_dataset("phantom:samples=30", task="segmentation"), "val", per_class=2)
    assert (name, images.shape, masks.shape) == ("val", (2, 32, 32, 1), (2, 32, 32))


def test_a_linear_classifier_cannot_solve_it():
    """Brightness and place of pixels alone must not do; a network has to see shape."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    dataset = open_dataset("phantom:samples=900")
    (x, y), (xt, yt) = (_read_all(dataset, s) for s in ("train", "test"))
    model = linear.RidgeClassifier(alpha=1e4).fit(x.reshape(len(x), -1) / 1.0, y)
    assert model.score(xt.reshape(len(xt), -1) / 1.0, yt) < 0.6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("phantom:size=8", "size is 8x8"),
        ("phantom:classes=5", "5 classes"),
        ("phantom:channels=2", "2 channels"),
        ("phantom:samples=5", "5 samples"),
        ("phantom:samples=-5", "samples=-5"),
        ("phantom:colour=1", "option colour=1"),
        ("phantom:size", "expected key=value"),
        ("phantom:size=32,size=33", "each once"),
        ("phantom:samples=1000000000,size=4096", "memory"),
        ("fantom", "not a data spec"),
        ("npz:", "has no path"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(spec)


@pytest.mark.parametrize(
    "arguments", [{"task": "regression"}, {"image_size": (0, 4)}, {"image_size": (1, 2, 3)}, {"val_fraction": 0.5}]
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match="open_dataset"):
        open_dataset("phantom:samples=40", **arguments)
