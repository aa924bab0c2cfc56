"""DICOM files that lie, are cut, or crash their codec: each costs the file, and is named."""

import contextlib
import resource
import struct
import sys
import zlib

import numpy as np
import pytest
from dicom_files import random_pixels, write_dicom

from medmpi.data import DataError, decoder, read_header, read_image
from medmpi.data.dicom import read_dicom

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("libjpeg")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "lie",
    [
        {"Rows": 20000, "Columns": 20000},
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2_000_000_000},
        {"NumberOfFrames": -3},
        {"BitsAllocated": 7},
        {"Rows": 0},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "HSV"},
    ],
)
def test_claims_are_refused_before_memory_is_taken(tmp_path, lie):
    file = write_dicom(tmp_path / "lie.dcm", random_pixels((16, 16)))
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(file)
        for name, value in lie.items():
            setattr(dataset, name, value)
        dataset.save_as(file)
    before = _peak()
    with pytest.raises(DataError, match=r"lie.dcm: ") as caught:
        read_image(file)
    assert caught.value.advice
    assert _peak() - before < 64 << 20


def test_an_element_that_claims_more_than_the_file_holds(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", random_pixels((16, 16)))
    data = file.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00OW\0\0")
    file.write_bytes(data[: at + 8] + struct.pack("<L", 2 << 30) + data[at + 12 : at + 112])
    with pytest.raises(DataError, match="truncated: 100 of 2147483648 bytes"):
        read_image(file)


def test_what_is_not_dicom(tmp_path):
    for name, content in (
        ("empty.dcm", b""),
        ("text.dcm", b"hello" * 100),
        ("head.dcm", b"\0" * 128 + b"DICM"),
        ("noise.dcm", b"\0" * 128 + b"DICM" + bytes(range(256)) * 20),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match=name):
            read_header(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.dcm")
    file = write_dicom(tmp_path / "report.dcm", random_pixels())
    dataset = pydicom.dcmread(file)
    del dataset.PixelData
    dataset.save_as(file)
    with pytest.raises(DataError, match=r"no pixel data|ends before its pixels"):
        read_image(file)


def test_deflated_bomb(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = write_dicom(tmp_path / "ok.dcm", random_pixels((16, 16)), syntax=DeflatedExplicitVRLittleEndian)
    whole = file.read_bytes()
    assert read_image(file).pixels.shape == (1, 16, 16, 1)
    file.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="truncated"):
        read_image(file)
    length = struct.unpack("<L", whole[140:144])[0]
    start = 144 + length
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = squeeze.compress(zlib.decompressobj(-15).decompress(whole[start:]))
    for _ in range(300):
        body += squeeze.compress(bytes(1 << 20))
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + body + squeeze.flush())
    before = _peak()
    with pytest.raises(DataError, match="unpacks to more than"):
        read_image(tmp_path / "bomb.dcm")
    assert _peak() - before < 64 << 20


#: One file of each codec.
CODECS = {
    "JPEG": "SC_rgb_jpeg_dcmtk.dcm",
    "JPEG extended": "JPGExtended.dcm",
    "JPEG lossless": "JPEG-LL.dcm",
    "JPEG-LS": "MR_small_jpeg_ls_lossless.dcm",
    "JPEG 2000": "MR_small_jp2klossless.dcm",
    "RLE": "MR_small_RLE.dcm",
}


@pytest.mark.parametrize("codec", CODECS)
def test_no_truncation_is_accepted(tmp_path, real_data, codec):
    """Cut at every 64th, and within the stream with the file's structure kept: codecs accept much of the latter."""
    whole = (real_data("dicom") / CODECS[codec]).read_bytes()
    image = read_image(real_data("dicom") / CODECS[codec])
    file = tmp_path / "cut.dcm"
    end = whole.rindex(b"\xfe\xff\xdd\xe0") + 4  # padding may follow
    for part in range(64):
        file.write_bytes(whole[: min(len(whole) * part // 64, end)])
        with pytest.raises(DataError, match=r"cut.dcm"):
            read_dicom(file)
    dataset = pydicom.dcmread(real_data("dicom") / CODECS[codec])
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    for share in (0.2, 0.6, 0.9):
        cut = frame[: int(len(frame) * share) // 2 * 2]
        dataset.PixelData = pydicom.encaps.encapsulate([cut])
        dataset.save_as(file)
        with pytest.raises(DataError, match=r"cut.dcm"):
            read_dicom(file)
    dataset.PixelData, dataset.Rows = pydicom.encaps.encapsulate([frame]), dataset.Rows * 4
    dataset.save_as(file)
    with pytest.raises(DataError):  # the stream is smaller than the header says
        read_dicom(file)
    assert image.frames == 1


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bytes_never_crash(tmp_path, real_data, codec):
    """Without a checksum in the file a flip may show as other pixels, but nothing else may come of it."""
    whole = (real_data("dicom") / CODECS[codec]).read_bytes()
    rng = np.random.default_rng(0)
    file = tmp_path / "flip.dcm"
    for count in (1, 1, 1, 50, 50, 50):
        data = bytearray(whole)
        for at in rng.integers(132, len(whole), count):
            data[at] = int(rng.integers(256))
        file.write_bytes(data)
        with contextlib.suppress(DataError):
            assert read_dicom(file).pixels.size


def test_every_frame_must_be_there(tmp_path, real_data):
    dataset = pydicom.dcmread(real_data("dicom") / "SC_rgb_rle_16bit_2frame.dcm")
    dataset.NumberOfFrames = 3
    dataset.save_as(tmp_path / "three.dcm")
    with pytest.raises(DataError, match=r"three.dcm"):
        read_image(tmp_path / "three.dcm")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)", "crashed on it \\(signal 11\\)"),
        ("input(); raise SystemExit(7)", "crashed on it \\(exit code 7\\)"),
        ("import time; input(); time.sleep(60)", "not decoded after 0.5 s|not decoded after 0 s"),
        ("import sys; input(); sys.stdout.write('garbage' * 99)", "crashed on it"),
    ],
)
def test_a_decoder_that_dies_costs_the_file(monkeypatch, code, match):
    process = decoder._Process((sys.executable, "-c", code))
    with pytest.raises(DataError, match=f"x.dcm: .*{match}"):
        process.decode("x.dcm", 0.5 if "sleep" in code else 20.0)
    assert not process.alive


def test_a_panic_costs_the_file(tmp_path, monkeypatch):
    """pylibjpeg-rle panics with a BaseException; the process that met it is not used again."""
    import io
    import json

    class Panic(BaseException):
        pass

    def panic(path):
        raise Panic("index out of bounds")

    monkeypatch.setattr("medmpi.data.dicom.decode_here", panic)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    answers = io.BytesIO()
    decoder._serve(io.BytesIO(b'{"path": "x.dcm"}\n{"path": "y.dcm"}\n'), answers)
    answer = answers.getvalue()
    length = int.from_bytes(answer[:4], "little")
    assert "panicked on it (index out of bounds)" in json.loads(answer[4 : 4 + length])["error"]
    assert len(answer) == 4 + length


def test_the_next_file_is_decoded_after_a_crash(real_data):
    file = real_data("dicom") / CODECS["RLE"]
    read_image(file)
    for process in list(decoder._pool.idle.queue):
        process.child.kill()
    assert read_image(file).pixels.shape == (1, 64, 64, 1)
