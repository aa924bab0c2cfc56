"""PNG, JPEG, TIFF and PGM: bits kept, damage found."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medmpi.data import DataError, Levels, read_header, read_image, to_levels


def _image(kind, dtype=np.uint8):
    rng = np.random.default_rng(0)
    shape = (33, 29, 3) if kind == "RGB" else (33, 29)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def _written(path, pixels):
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        pytest.importorskip("tifffile").imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


KINDS = [
    ("g8.png", "L", np.uint8),
    ("g16.png", "L", np.uint16),
    ("rgb.png", "RGB", np.uint8),
    ("g8.tif", "L", np.uint8),
    ("g16.tiff", "L", np.uint16),
    ("rgb16.tif", "RGB", np.uint16),
    ("g8.pgm", "L", np.uint8),
    ("rgb.ppm", "RGB", np.uint8),
]


@pytest.mark.parametrize(("name", "kind", "dtype"), KINDS)
def test_bits_are_kept(tmp_path, name, kind, dtype):
    pixels = _image(kind, dtype)
    image = read_image(_written(tmp_path / name, pixels))
    assert image.pixels.dtype == dtype
    assert np.array_equal(image.pixels[0].squeeze(), pixels)
    assert read_header(tmp_path / name).grey == (kind == "L")
    levels = to_levels(image, Levels())
    expected = pixels if dtype == np.uint8 else np.floor(pixels / 65535 * 255 + 0.5)
    assert np.array_equal(levels[0].squeeze(), expected)


@pytest.mark.parametrize(("name", "kind", "dtype"), [*KINDS, ("x.jpg", "L", np.uint8)])
def test_no_truncation_is_accepted(tmp_path, name, kind, dtype):
    file = _written(tmp_path / name, _image(kind, dtype))
    whole = file.read_bytes()
    for part in range(64):
        file.write_bytes(whole[: len(whole) * part // 64])
        with pytest.raises(DataError, match=name):
            read_image(file)


def test_flipped_bytes_of_png_are_found(tmp_path):
    file = _written(tmp_path / "x.png", _image("L"))
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 200):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"x.png"):
            read_image(file)


@pytest.mark.parametrize("name", ["x.jpg", "x.tif", "x.pgm"])
def test_flipped_bytes_never_crash(tmp_path, name):
    file = _written(tmp_path / name, _image("L"))
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 200):
        data = bytearray(whole)
        data[at] ^= 0xFF
        file.write_bytes(data)
        try:
            shape = read_image(file).pixels.shape
        except DataError:
            continue
        assert len(shape) == 4


def test_gigapixels_in_a_kilobyte(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    (tmp_path / "big.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    (tmp_path / "big.pgm").write_bytes(b"P5 20000 20000 255\n" + bytes(1000))
    for name in ("big.png", "big.pgm"):
        with pytest.raises(DataError, match=rf"{name}: (it claims .* pixels|its size is absurd)"):
            read_image(tmp_path / name)


def test_float_tiff_and_nan(tmp_path):
    pixels = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
    image = read_image(_written(tmp_path / "f.tif", pixels))
    assert np.array_equal(image.pixels[0, ..., 0], pixels)
    with pytest.raises(DataError, match="no range of bits"):
        to_levels(image, Levels())
    assert to_levels(image, Levels("full")).ravel()[[0, -1]].tolist() == [0, 255]
    pixels[1, 1] = np.inf
    image = read_image(_written(tmp_path / "f.tif", pixels))
    with pytest.raises(DataError, match="1 of its pixels are NaN or infinite"):
        to_levels(image, Levels("full"))
    assert to_levels(image, Levels("full", nan="fill")).ravel()[-1] == 255


def test_one_pixel_and_the_wrong_kind(tmp_path):
    assert read_image(_written(tmp_path / "1.png", np.array([[9]], np.uint8))).pixels.shape == (1, 1, 1, 1)
    (tmp_path / "word.png").write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(DataError, match="not a PNG, JPEG, TIFF, BMP or PGM picture"):
        read_image(tmp_path / "word.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty.png"):
        read_image(tmp_path / "empty.png")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_bmp(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = _written(tmp_path / "x.bmp", pixels)
    assert read_image(file).pixels.shape == (1, 5, 7, shape[2] if len(shape) > 2 else 1)
    assert np.array_equal(read_image(file).pixels.reshape(shape), pixels)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x.bmp: cannot be decoded"):
        read_image(file)


def test_real_mammograms(real_data):
    image = read_image(real_data("mammograms") / "mdb001.pgm")
    assert image.pixels.shape == (1, 1024, 1024, 1)
    assert image.pixels.dtype == np.uint8
