"""Augmentation: keyed by sample, masks move with their images, every option does what it says."""

import time

import numpy as np
import pytest

from medmpi.data import Augment, Loader, epoch_order, global_batches, open_dataset, share

ALL = Augment(
    crop_padding=3,
    horizontal_flip=True,
    vertical_flip=True,
    rotate90=True,
    rotate_degrees=15,
    zoom=0.1,
    brightness=0.1,
    contrast=0.2,
    colour=0.1,
)


def _images(n=64, h=16, w=16, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_sample_looks_the_same_on_any_number_of_ranks(size):
    dataset = open_dataset("phantom:samples=90", seed=2)
    train = dataset.splits["train"]
    batches = global_batches(epoch_order(len(train), 2, 5), 32)
    transform = ALL.at(2, 5)
    serial = {}
    for batch in Loader(train, batches, transform=transform, threads=0):
        serial.update(zip(batch.ids.tolist(), batch.images, strict=True))
    seen = 0
    for rank in range(size):
        with Loader(train, [share(ids, rank, size)[1] for ids in batches], transform=transform, threads=2) as loader:
            for batch in loader:
                for sample, image in zip(batch.ids.tolist(), batch.images, strict=True):
                    assert np.array_equal(image, serial[sample])
                    seen += 1
    assert seen == len(train)


def test_seed_epoch_and_sample_matter():
    same = np.repeat(_images(1), 64, axis=0)
    ids = np.arange(64)
    first = ALL.at(0, 0)(same, None, ids)[0]
    assert len({image.tobytes() for image in first}) == 64
    for other in (ALL.at(1, 0), ALL.at(0, 1)):
        assert not (other(same, None, ids)[0] == first).all(axis=(1, 2, 3)).any()


def test_masks_move_with_images():
    rng = np.random.default_rng(3)
    masks = (rng.random((40, 20, 20)) < 0.3).astype(np.uint8) * 2
    images = (masks * 100)[..., None]
    moves = Augment(crop_padding=4, horizontal_flip=True, vertical_flip=True, rotate90=True)
    moved, moved_masks = moves.at(0, 1)(images, masks, np.arange(40))
    assert np.array_equal(moved[..., 0], moved_masks * 100)
    assert not np.array_equal(moved_masks, masks)
    turned, turned_masks = Augment(rotate_degrees=30).at(0, 1)(images, masks, np.arange(40))
    assert set(np.unique(turned_masks)) <= {0, 2}
    # A blend decides less sharply than the nearest pixel, but mostly alike.
    assert ((turned[..., 0] > 100) == (turned_masks == 2)).mean() > 0.85


def test_masks_do_not_change_colour():
    masks = np.full((8, 6, 6), 3, np.uint8)
    _, out = Augment(brightness=0.5, contrast=0.5).at(0, 0)(_images(8, 6, 6, 1), masks, np.arange(8))
    assert np.array_equal(out, masks)


def test_crop_covers_all_shifts_and_pads_with_zeros():
    images = np.repeat((_images(1, 8, 8, 1) | 1), 800, axis=0)
    out, _ = Augment(crop_padding=2).at(0, 0)(images, None, np.arange(800))
    padded = np.pad(images[0, ..., 0], 2)
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    counts = {}
    for image in out:
        counts[image.tobytes()] = counts.get(image.tobytes(), 0) + 1
    assert set(counts) == windows
    # 32 expected of each of the 25; five standard deviations.
    assert all(abs(count - 32) < 5 * np.sqrt(32) for count in counts.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Augment(horizontal_flip=True), 2),
        (Augment(vertical_flip=True), 2),
        (Augment(rotate90=True), 4),
        (Augment(horizontal_flip=True, vertical_flip=True), 4),
        (Augment(horizontal_flip=True, vertical_flip=True, rotate90=True), 8),
    ],
)
def test_flips_and_quarter_turns_give_the_symmetries_of_the_square(options, expected):
    image = _images(1, 9, 9, 1)[0]
    symmetries = {np.rot90(f, k).tobytes() for f in (image, image[:, ::-1]) for k in range(4)}
    out, _ = options.at(0, 0)(np.repeat(image[None], 300, axis=0), None, np.arange(300))
    seen = {o.tobytes() for o in out}
    assert len(seen) == expected
    assert seen <= symmetries


def test_horizontal_is_left_to_right():
    image = _images(1, 5, 7, 1)
    out, _ = Augment(horizontal_flip=True).at(0, 0)(np.repeat(image, 40, 0), None, np.arange(40))
    assert {o.tobytes() for o in out} == {image.tobytes(), np.ascontiguousarray(image[:, :, ::-1]).tobytes()}


def test_levels_stay_in_their_ranges():
    flat = np.full((500, 4, 4, 3), 100, np.uint8)
    out, _ = Augment(brightness=0.1).at(0, 0)(flat, None, np.arange(500))
    values = out.reshape(500, -1)
    assert (values == values[:, :1]).all()
    assert values.min() in range(74, 78)
    assert values.max() in range(123, 127)
    out, _ = Augment(colour=0.2).at(0, 0)(flat, None, np.arange(500))
    assert 79 <= out.min() <= 83
    assert 117 <= out.max() <= 121
    assert np.ptp(out.reshape(500, -1, 3).astype(int), axis=2).max() > 5
    out, _ = Augment(contrast=0.5).at(0, 0)(flat, None, np.arange(500))
    assert 85 <= out.min() <= 88
    assert 112 <= out.max() <= 115


def test_nothing_asked_changes_nothing():
    images = _images(4)
    out, masks = Augment().at(0, 0)(images, None, np.arange(4))
    assert out is images
    assert masks is None
    assert Augment(rotate90=True).at(0, 0)(images[:0], None, np.arange(0))[0].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("option", [{"crop_padding": -1}, {"rotate_degrees": 181}, {"zoom": -0.1}, {"contrast": 1.5}])
def test_wrong_options(option):
    with pytest.raises(ValueError, match=f"Augment: {next(iter(option))}"):
        Augment(**option)


def test_rotate90_needs_square_images():
    with pytest.raises(ValueError, match="16x12"):
        Augment(rotate90=True).at(0, 0)(_images(2, 16, 12), None, np.arange(2))


def test_it_is_fast_enough_not_to_starve_training():
    """A bound far below what an idle core does (over 90,000 images a second here), but above a loop in Python."""
    images, ids = _images(256, 28, 28, 1), np.arange(256)
    transform = ALL.at(0, 0)
    best = np.inf
    for _ in range(10):
        start = time.perf_counter()
        transform(images, None, ids)
        best = min(best, time.perf_counter() - start)
    assert 256 / best > 5000
