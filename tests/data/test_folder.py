"""Pictures in folders: layouts, kinds of files, pairs with masks, and files that are broken."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medmpi.data import DataError, Loader, class_counts, open_dataset


def _picture(path, size=(8, 6), mode="L", seed=0, value=None, **options):
    """Writes a random picture of (h, w) and gives its pixels."""
    rng = np.random.default_rng(seed)
    shape = size if mode in ("L", "I;16") else (*size, len(mode))
    top, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    pixels = rng.integers(0, top, shape, dtype=dtype) if value is None else np.full(shape, value, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def classes(tmp_path):
    """20 normal and 10 tumour pictures, written in an order that is not that of their names."""
    for k, (name, n) in enumerate((("tumour", 10), ("normal", 20))):
        for i in reversed(range(n)):
            _picture(tmp_path / name / f"{i:02}.png", seed=100 * k + i)
    return tmp_path


def _read(dataset, split="train"):
    return dataset.splits[split].read(np.arange(len(dataset.splits[split])))


def test_class_folders(classes):
    (classes / "normal" / "notes.txt").write_text("not a picture")
    (classes / "normal" / ".hidden.png").write_text("not a picture")
    dataset = open_dataset(f"folder:{classes}", val_fraction=0.2)
    assert dataset.classes == ("normal", "tumour")
    assert (dataset.task, dataset.channels, dataset.image_size) == ("classification", 1, (8, 6))
    assert [class_counts(dataset, s).tolist() for s in ("train", "val", "test")] == [[12, 6], [4, 2], [4, 2]]
    whole = open_dataset(f"folder:{classes}", val_fraction=0)
    images, labels = _read(whole)
    assert labels.tolist() == [0] * 20 + [1] * 10
    expected = np.asarray(Image.open(classes / "normal" / "07.png"))
    assert np.array_equal(images[7, ..., 0], expected)


def test_split_folders_and_nested_ones(tmp_path):
    for split, n in (("train", 4), ("valid", 2), ("test", 3)):
        for name in ("a", "b"):
            for i in range(n):
                _picture(tmp_path / split / name / f"patient{i}" / "x.png", mode="RGB", seed=i)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert [len(dataset.splits[s]) for s in ("train", "val", "test")] == [8, 4, 6]
    assert dataset.channels == 3
    _picture(tmp_path / "test" / "c" / "x.png", mode="RGB")
    with pytest.raises(DataError, match="test/c: training has no class of this name; expected a, b"):
        open_dataset(f"folder:{tmp_path}")


def test_kinds_of_pictures(tmp_path):
    grey = _picture(tmp_path / "a" / "0.tif", mode="L")
    colour = _picture(tmp_path / "a" / "1.png", mode="RGB", seed=1)
    alpha = _picture(tmp_path / "a" / "2.png", mode="RGBA", seed=2)
    deep = _picture(tmp_path / "a" / "3.tiff", mode="I;16", seed=3)
    deep_png = _picture(tmp_path / "a" / "4.PNG", mode="I;16", seed=4)
    _picture(tmp_path / "b" / "0.jpg", mode="RGB", value=77, quality=95)
    Image.fromarray(grey).convert("P").save(tmp_path / "b" / "1.png")
    Image.fromarray(grey > 99).save(tmp_path / "b" / "2.png")
    images, _ = _read(open_dataset(f"folder:{tmp_path}", val_fraction=0))
    assert images.shape == (8, 8, 6, 3)
    for i, expected in enumerate((grey, colour, alpha[..., :3], deep, deep_png)):
        if expected.dtype == np.uint16:
            expected = np.rint(expected / 257).astype(np.uint8)
        full = np.broadcast_to(expected[..., None] if expected.ndim == 2 else expected, (8, 6, 3))
        assert np.array_equal(images[i], full)
    assert np.abs(images[5].astype(int) - 77).max() <= 2
    assert np.array_equal(images[6], np.broadcast_to(grey[..., None], (8, 6, 3)))
    assert np.array_equal(images[7, ..., 0], np.where(grey > 99, 255, 0))


def test_bits_of_deep_pictures(tmp_path):
    for name, value in (("a", 4095), ("b", 2048)):
        _picture(tmp_path / name / "x.png", mode="I;16", value=value)
    images, _ = _read(open_dataset(f"folder:{tmp_path}?bits=12", val_fraction=0))
    assert np.unique(images).tolist() == [128, 255]
    assert np.unique(_read(open_dataset(f"folder:{tmp_path}", val_fraction=0))[0]).tolist() == [8, 16]
    with pytest.raises(DataError, match="reach 4095, beyond 10 bits"):
        open_dataset(f"folder:{tmp_path}?bits=10")


def test_sizes(classes):
    _picture(classes / "tumour" / "03.png", size=(9, 6))
    with pytest.raises(DataError, match=r"tumour/03.png: it is 9x6, .*normal/00.png is 8x6; give an image size"):
        open_dataset(f"folder:{classes}")
    dataset = open_dataset(f"folder:{classes}", image_size=(12, 10), val_fraction=0)
    images, _ = _read(dataset)
    assert dataset.image_size == (12, 10)
    expected = Image.open(classes / "tumour" / "03.png").resize((10, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(images[23, ..., 0], np.asarray(expected))


def test_too_many_for_memory_are_read_from_the_files(classes, monkeypatch):
    in_memory = open_dataset(f"folder:{classes}", image_size=7)
    monkeypatch.setattr("medmpi.data.entries._IN_MEMORY_BYTES", 0)
    from_files = open_dataset(f"folder:{classes}", image_size=7)
    assert type(from_files.splits["train"].source).__name__ == "FileSource"
    for mine, other in zip(_read(in_memory), _read(from_files), strict=True):
        assert np.array_equal(mine, other)
    assert np.array_equal(in_memory.mean, from_files.mean)
    assert from_files.splits["train"].read([])[0].shape == (0, 7, 7, 1)
    victim = from_files.splits["train"].source.entries[from_files.splits["train"].positions[3]].image
    victim.unlink()
    with (
        pytest.raises(DataError, match=victim.name),
        Loader(from_files.splits["train"], [np.array([0]), np.array([3])], threads=2) as loader,
    ):
        list(loader)


def _png(width, height, mode=b"\x08\x00"):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">II", width, height) + mode + b"\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


BROKEN = {
    "empty": lambda good: b"",
    "text": lambda good: b"this is no picture",
    "half": lambda good: good[: len(good) // 2],
    "flipped": lambda good: good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 255]) + good[len(good) // 2 + 1 :],
    "bomb": lambda good: _png(20000, 20000),
    "large": lambda good: _png(9000, 8000),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_broken_pictures_are_named_or_skipped(classes, kind):
    victim = classes / "tumour" / "05.png"
    victim.write_bytes(BROKEN[kind](victim.read_bytes()))
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{classes}")
    assert str(caught.value).startswith(f"{victim}: ")
    assert "\n" not in str(caught.value)
    skipping = open_dataset(f"folder:{classes}?bad=skip", val_fraction=0)
    assert class_counts(skipping).tolist() == [20, 9]
    assert len(skipping.skipped) == 1
    assert skipping.skipped[0].startswith(f"{victim}: ")
    assert "1 bad files skipped" in skipping.describe()


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_truncated_jpeg_and_tiff(tmp_path, suffix):
    for name in ("a", "b"):
        _picture(tmp_path / name / f"x{suffix}", size=(40, 40))
    victim = tmp_path / "b" / f"x{suffix}"
    victim.write_bytes(victim.read_bytes()[:700])
    with pytest.raises(DataError, match=f"b/x{suffix}: "):
        open_dataset(f"folder:{tmp_path}")


def test_pages_and_float_pixels_are_refused(classes):
    page = Image.fromarray(np.zeros((8, 6), np.uint8))
    page.save(classes / "normal" / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match=r"pages.tif: it holds 2 pictures"):
        open_dataset(f"folder:{classes}")
    Image.fromarray(np.zeros((8, 6), np.float32)).save(classes / "normal" / "pages.tif")
    with pytest.raises(DataError, match="floating-point"):
        open_dataset(f"folder:{classes}")


def test_wrong_layouts(tmp_path, classes):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(f"folder:{tmp_path}/none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 class folders"):
        open_dataset(f"folder:{tmp_path}/empty")
    with pytest.raises(DataError, match="laid out for classification"):
        open_dataset(f"folder:{classes}", task="segmentation")
    for option in ("bits=7", "bad=maybe", "masks=no", "colour=1"):
        with pytest.raises(ValueError, match=f"folder: option {option}"):
            open_dataset(f"folder:{classes}?{option}")
    with pytest.raises(DataError, match="empty: the class has no picture"):
        open_dataset(f"folder:{classes}")
    (tmp_path / "empty").rename(tmp_path / "test")
    with pytest.raises(DataError, match="it has test but no train"):
        open_dataset(f"folder:{tmp_path}")


def test_a_class_without_a_readable_picture(tmp_path):
    _picture(tmp_path / "a" / "x.png")
    _picture(tmp_path / "b" / "x.png").tofile(tmp_path / "b" / "x.png")
    with pytest.raises(DataError, match="class b has no readable training picture"):
        open_dataset(f"folder:{tmp_path}?bad=skip")


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        _picture(tmp_path / "images" / f"{i}.jpg", mode="RGB", seed=i)
        (tmp_path / "masks").mkdir(exist_ok=True)
        name = f"{i}_mask.png" if i % 2 else f"{i}.png"
        Image.fromarray(rng.integers(0, 3, (8, 6), dtype=np.uint8)).save(tmp_path / "masks" / name)
    return tmp_path


def test_masks(pairs):
    dataset = open_dataset(f"folder:{pairs}", val_fraction=0)
    assert (dataset.task, dataset.classes) == ("segmentation", ("0", "1", "2"))
    _, masks = _read(dataset)
    assert np.array_equal(masks[3], np.asarray(Image.open(pairs / "masks" / "3_mask.png")))
    small = open_dataset(f"folder:{pairs}", image_size=(4, 3), val_fraction=0)
    assert _read(small)[1].shape == (10, 4, 3)
    foreground = open_dataset(f"folder:{pairs}?masks=binary", val_fraction=0)
    assert foreground.classes == ("background", "foreground")
    assert np.array_equal(_read(foreground)[1], masks > 0)


def test_masks_of_0_and_255_are_two_classes(pairs, monkeypatch):
    for file in (pairs / "masks").iterdir():
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(file)
    dataset = open_dataset(f"folder:{pairs}")
    assert dataset.classes == ("background", "foreground")
    assert np.unique(_read(dataset)[1]).tolist() == [0, 1]
    monkeypatch.setattr("medmpi.data.entries._IN_MEMORY_BYTES", 0)
    assert np.array_equal(_read(open_dataset(f"folder:{pairs}"))[1], _read(dataset)[1])


@pytest.mark.parametrize(
    ("mask", "cause"),
    [
        (np.zeros((8, 7), np.uint8), r"it is 8x7, 4.jpg is 8x6"),
        (np.full((8, 6), 9, np.uint8), "class 3 has no training sample"),
        (np.full((8, 6), 999, np.uint16), "numbers up to 999; for instances give .masks=binary"),
        (np.zeros((8, 6, 3), np.uint8), "a mask of mode RGB"),
    ],
)
def test_wrong_masks(pairs, mask, cause):
    Image.fromarray(mask).save(pairs / "masks" / "4.png")
    with pytest.raises(DataError, match=cause):
        open_dataset(f"folder:{pairs}")


def test_wrong_pairs(pairs):
    (pairs / "masks" / "4.png").rename(pairs / "masks" / "44.png")
    with pytest.raises(DataError, match=r"images/4.jpg: it has no mask"):
        open_dataset(f"folder:{pairs}")
    _picture(pairs / "images" / "44.jpg", mode="RGB")
    (pairs / "images" / "4.jpg").unlink()
    _picture(pairs / "masks" / "orphan.png")
    with pytest.raises(DataError, match=r"orphan.png: a mask without a picture"):
        open_dataset(f"folder:{pairs}")
    _picture(pairs / "images" / "44.png")
    with pytest.raises(DataError, match=r"44.png: 44.jpg has the same name"):
        open_dataset(f"folder:{pairs}")


def test_broken_masks_are_skipped_with_their_picture(pairs):
    (pairs / "masks" / "4.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"masks/4.png: not a PNG"):
        open_dataset(f"folder:{pairs}")
    dataset = open_dataset(f"folder:{pairs}?bad=skip", val_fraction=0)
    assert len(dataset.splits["train"]) == 9
    assert len(dataset.skipped) == 1


def test_real_nuclei(real_data):
    path = real_data("nuclei_segmentation")
    with pytest.raises(DataError, match="give an image size"):
        open_dataset(f"folder:{path}")
    with pytest.raises(DataError, match="for instances give"):
        open_dataset(f"folder:{path}", image_size=64)
    dataset = open_dataset(f"folder:{path}?masks=binary", image_size=64)
    assert dataset.task == "segmentation"
    assert sum(len(s) for s in dataset.splits.values()) == 132
    counts = class_counts(dataset)
    assert 0.05 < counts[1] / counts.sum() < 0.5
