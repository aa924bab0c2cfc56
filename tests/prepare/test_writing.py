"""PNG files as other software reads them, and files that a thread writes."""

import errno
import io

import numpy as np
import pytest
from PIL import Image

from medmpi import behind
from medmpi.behind import WriteBehind
from medmpi.prepare.png import encode_png


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (33, 20, 1), (5, 1, 3), (16, 31, 3)])
def test_pillow_reads_the_same_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    picture = Image.open(io.BytesIO(encode_png(pixels, (0.2, 0.1))))
    assert np.array_equal(np.asarray(picture).reshape(shape), pixels)
    assert np.allclose(picture.info["dpi"], (254.0, 127.0), rtol=1e-4)
    if shape[2] == 1:
        wide = np.random.default_rng(1).integers(0, 65536, shape, np.uint16)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(wide)))).reshape(shape), wide)


def test_a_set_is_told_of_when_all_of_it_is_there(tmp_path):
    seen = []
    writer = WriteBehind()
    for i in range(100):
        files = [(tmp_path / f"{i % 7}" / f"{i}-{k}", bytes([i, k])) for k in range(3)]
        writer.put(files, lambda files=files: seen.append([p.read_bytes() for p, _ in files]))
    writer.close()
    assert seen == [[bytes([i, k]) for k in range(3)] for i in range(100)]
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 300, "nothing temporary is left"


def test_an_error_is_raised_and_nothing_is_told_of(tmp_path, monkeypatch):
    def full(number, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(behind, "_write_all", full)
    seen = []
    writer = WriteBehind()
    writer.put([(tmp_path / "a", b"1")], lambda: seen.append("a"))
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    with pytest.raises(OSError, match="No space left"):
        writer.put([(tmp_path / "b", b"1")], lambda: seen.append("b"))
    assert not seen
    assert not list(tmp_path.iterdir())
