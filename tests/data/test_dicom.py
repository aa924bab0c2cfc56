"""DICOM: every transfer syntax against known hashes, the steps from stored values to levels, folders of them."""

import hashlib
import json

import numpy as np
import pytest
from dicom_files import random_pixels, write_dicom

from medmpi.data import DataError, Levels, open_dataset, read_header, read_image, to_levels
from medmpi.data.dicom import decode_here
from medmpi.data.dicom_native import syntax_of
from medmpi.data.medical import parse_window

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("libjpeg")

#: What the two files that are broken on purpose are refused with.
BROKEN = {
    "MR_truncated.dcm": "it is truncated: 8130 of 8192 bytes of pixels are there",
    "badVR.dcm": "its NumberOfFrames cannot be read",
}


def test_all_files_against_their_hashes(real_data):
    folder = real_data("dicom")
    expected = json.loads((folder / "expected.json").read_text())["files"]
    assert len(expected) == 30
    for name, entry in expected.items():
        if not entry["decoded"]:
            with pytest.raises(DataError, match=f"{name}: {BROKEN[name]}"):
                read_image(folder / name)
            continue
        stored = decode_here(str(folder / name))
        assert hashlib.sha256(stored.tobytes(order="C")).hexdigest() == entry["sha256_c_order"], name
        image, header = read_image(folder / name), read_header(folder / name)
        assert (header.frames, *header.image_size) == image.pixels.shape[:3], name
        assert header.frames == entry["frames"]
        assert (header.image_size, header.grey) == ((entry["rows"], entry["columns"]), image.grey)
        identity = entry["rescale_slope"] == 1 and entry["rescale_intercept"] == 0
        if identity and entry["photometric"] != "PALETTE COLOR" and name != "mlut_18.dcm":
            native = image.pixels.reshape(stored.shape)
            assert np.array_equal(native, stored), name
        elif entry["rescale_slope"] == 1:
            shift = entry["rescale_intercept"]
            if name != "mlut_18.dcm" and entry["photometric"] != "PALETTE COLOR":
                assert np.array_equal(image.pixels.reshape(stored.shape), stored.astype(int) + int(shift)), name
        levels = to_levels(image, Levels())
        assert levels.dtype == np.uint8
        assert levels.min() < levels.max(), name


def test_the_same_mammogram_in_two_photometries(real_data):
    """MONOCHROME1 of 12 bits, RLE, and MONOCHROME2 of 8 bits show the same once inverted."""
    folder = real_data("mammograms")
    one = to_levels(read_image(folder / "mdb023_mono1_12bit_rle.dcm"), Levels("bits"))
    two = to_levels(read_image(folder / "mdb023_mono2_8bit_evle.dcm"), Levels())
    pgm = read_image(folder / "mdb023.pgm").pixels
    assert np.array_equal(two, pgm)
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.999


def test_rescale_window_and_inversion(tmp_path):
    pixels = np.array([[0, 500, 1024, 1064, 1124, 4095]], np.uint16)
    options = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 201}
    image = read_image(write_dicom(tmp_path / "ct.dcm", pixels, bits=12, PixelSpacing=[0.5, 0.25], **options))
    assert image.pixels.dtype == np.int16
    assert image.pixels.ravel().tolist() == [-1024, -524, 0, 40, 100, 3071]
    assert image.spacing == (0.5, 0.25)
    # PS3.3 C.11.2.1.2.1 with c = 40, w = 201: from -60.5 to 139.5.
    shares = np.clip((image.pixels.ravel() - (40 - 0.5 - 100)) / 200, 0, 1)
    assert np.array_equal(to_levels(image, Levels()).ravel(), np.floor(shares * 255 + 0.5))
    assert to_levels(image, Levels("full")).ravel()[[0, -1]].tolist() == [0, 255]
    assert to_levels(image, Levels((0.0, 2.0))).ravel().tolist() == [0, 0, 255, 255, 255, 255]
    assert to_levels(image, Levels("full"), depth=16).dtype == np.uint16
    negative = read_image(write_dicom(tmp_path / "n.dcm", pixels, bits=12, photometric="MONOCHROME1"))
    assert negative.pixels.dtype == np.uint16, "16 bits are kept"
    assert to_levels(negative, Levels("bits")).ravel()[[0, -1]].tolist() == [255, 0]
    fraction = read_image(write_dicom(tmp_path / "f.dcm", pixels, RescaleSlope=0.5, RescaleIntercept=1))
    assert fraction.pixels.dtype == np.float32
    assert fraction.pixels.ravel()[1] == 251
    assert parse_window("40/400") == (40, 400)
    with pytest.raises(ValueError, match="expected auto, full, bits or CENTRE/WIDTH"):
        parse_window("40-400")


def test_a_table_of_values_of_interest(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.add_new(0x00283002, "US", [4, 10, 8])
    table.add_new(0x00283006, "US", [0, 100, 150, 255])
    image = read_image(
        write_dicom(
            tmp_path / "t.dcm", np.array([[5, 10, 11, 12, 13, 99]], np.uint16), VOILUTSequence=Sequence([table])
        )
    )
    assert to_levels(image, Levels()).ravel().tolist() == [0, 0, 100, 150, 255, 255]


def test_one_value_one_pixel_and_not_a_number(tmp_path):
    constant = read_image(write_dicom(tmp_path / "c.dcm", np.full((4, 4), 7, np.uint16)))
    assert not to_levels(constant, Levels()).any()
    single = read_image(write_dicom(tmp_path / "s.dcm", np.full((1, 1), 7, np.uint16)))
    assert to_levels(single, Levels("bits")).shape == (1, 1, 1, 1)


def test_mixed_folder_of_classes(tmp_path):
    """DICOM of several bits, without a suffix, of two frames; PNG; a patient's images stay together."""
    from PIL import Image

    for k, name in enumerate(("normal", "tumour")):
        for p in range(6):
            patient = f"{name}-{p}"
            write_dicom(tmp_path / name / f"{p}.dcm", random_pixels(seed=p) // (k + 1), patient=patient, bits=12)
            write_dicom(tmp_path / name / f"IM{p:04}", random_pixels(seed=9 + p), patient=patient, bits=12)
        write_dicom(tmp_path / name / "film.dcm", random_pixels((3, 16, 12)), patient=f"{name}-0", bits=12)
        Image.fromarray(random_pixels(dtype=np.uint8, top=256)).save(tmp_path / name / "x.png")
    (tmp_path / "normal" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    dataset = open_dataset(f"folder:{tmp_path}?window=bits", val_fraction=0.2)
    assert sum(len(s) for s in dataset.splits.values()) == 2 * (6 + 6 + 3 + 1)
    groups = {name: set(split.groups) for name, split in dataset.splits.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
    whole = open_dataset(f"folder:{tmp_path}?window=bits", val_fraction=0)
    images, _ = whole.splits["train"].read(np.arange(3))
    assert np.array_equal(images[0, ..., 0], np.floor(random_pixels(seed=0) / 4095 * 255 + 0.5))
    assert dataset.reading.levels.window == "bits"


def test_a_patient_on_both_sides(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            for p in range(3):
                write_dicom(tmp_path / split / name / f"{p}.dcm", random_pixels(seed=p), patient=f"{split}{name}{p}")
    open_dataset(f"folder:{tmp_path}")
    write_dicom(tmp_path / "test" / "a" / "9.dcm", random_pixels(), patient="trainb1")
    with pytest.raises(DataError, match=r"1 of 12 patients .* in train and in test"):
        open_dataset(f"folder:{tmp_path}")
    assert len(open_dataset(f"folder:{tmp_path}?groups=none").splits["test"]) == 7


def test_broken_files_are_skipped_and_named(tmp_path):
    for name in ("a", "b"):
        for p in range(5):
            write_dicom(tmp_path / name / f"{p}.dcm", random_pixels(seed=p), patient=f"{name}{p}")
    bad = tmp_path / "a" / "2.dcm"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a/2.dcm: it is truncated"):
        open_dataset(f"folder:{tmp_path}")
    dataset = open_dataset(f"folder:{tmp_path}?bad=skip")
    assert len(dataset.skipped) == 1
    assert "2.dcm" in dataset.skipped[0]
    assert "1 bad files skipped" in dataset.describe()


PLAIN = [
    (allocated, stored, signed, syntax)
    for syntax in ("ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian")
    for allocated, stored in ((8, 3), (8, 8), (16, 3), (16, 12), (16, 16))
    for signed in (False, True)
    if allocated == 16 or not syntax.endswith("BigEndian")
]


@pytest.mark.parametrize(("allocated", "stored", "signed", "syntax"), PLAIN)
def test_plain_pixels_are_those_of_pydicom(tmp_path, allocated, stored, signed, syntax):
    """What is read straight from the file, noise in the unused bits included."""
    uid = getattr(pydicom.uid, syntax)
    dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    pixels = np.random.default_rng(stored).integers(0, 256, (3, 6, 4 * dtype.itemsize), np.uint8).view(dtype)
    little = not syntax.endswith("BigEndian")
    file = tmp_path / "x.dcm"
    _as_it_is(file, pixels, uid, stored, signed=signed, little=little)
    found = read_image(file).pixels[..., 0]
    expected = decode_here(str(file))
    assert found.dtype == expected.dtype.newbyteorder("=")
    assert np.array_equal(found, expected)
    if little:  # without noise, too
        _as_it_is(file, pixels & dtype.type(2 ** (stored - 1) - 1), uid, stored, signed=signed, little=True)
        assert np.array_equal(read_image(file).pixels[..., 0], decode_here(str(file)))


@pytest.mark.parametrize("signed", [False, True])
def test_pixels_above_other_bits(tmp_path, signed):
    """Old files keep something else, overlays for instance, in the bits below the pixel's."""
    expected = np.random.default_rng(0).integers(-2048 * signed, 4096 - 2048 * signed, (1, 6, 8))
    noise = np.random.default_rng(1).integers(0, 16, expected.shape)
    words = ((expected << 4) | noise).astype(np.int16 if signed else np.uint16)
    _as_it_is(tmp_path / "x.dcm", words, pydicom.uid.ExplicitVRLittleEndian, 12, signed=signed, little=True, high=15)
    assert np.array_equal(read_image(tmp_path / "x.dcm").pixels[..., 0], expected)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_each_function_of_a_window(tmp_path, function):
    from pydicom.pixels import apply_windowing

    pixels = np.arange(4096, dtype=np.uint16).reshape(1, 64, 64)
    file = tmp_path / "x.dcm"
    more = {"WindowCenter": 1000, "WindowWidth": 300, "VOILUTFunction": function}
    _as_it_is(file, pixels, pydicom.uid.ExplicitVRLittleEndian, 12, signed=False, little=True, **more)
    expected = apply_windowing(pixels, pydicom.dcmread(file)) * (255 / 4095)
    found = to_levels(read_image(file), Levels())[..., 0]
    assert np.abs(found - expected).max() < 0.51


def _as_it_is(file, pixels, uid, stored, *, signed, little, high=None, **more):
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    meta.TransferSyntaxUID = uid
    encoding = {"is_implicit_VR": uid.is_implicit_VR, "is_little_endian": little}
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128, **encoding)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, stored, high or stored - 1
    dataset.PixelRepresentation = int(signed)
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(file, implicit_vr=uid.is_implicit_VR, little_endian=little, enforce_file_format=True)


def test_a_syntax_behind_another_one_is_not_hidden(tmp_path):
    """What says first that it is plain and then that it is deflated is given to pydicom's own reading."""
    head = bytes(128) + b"DICM"

    def element(number, text, kind=b"UI"):
        return b"\x02\0" + number.to_bytes(2, "little") + kind + len(text).to_bytes(2, "little") + text

    plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    rest = b"\x08\0\x16\0UI\x02\x001\0"
    assert syntax_of(head + element(0x10, plain) + rest) == plain[:-1].decode()
    assert syntax_of(head + element(0x10, deflated) + rest) == deflated.decode()
    for odd in (
        element(0x10, plain) + element(0x10, deflated) + rest,  # twice
        element(0x10, plain),  # without an end
        element(0x10, plain, b"u?") + rest,
        element(0x10, plain) + b"\x01\0" + rest,  # a group before it
    ):
        assert syntax_of(head + odd) is None
