"""Files of arrays among other images, files that only their first bytes tell, tables of groups as people write them."""

import subprocess
import sys

import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from medmpi.data import DataError, Levels, open_dataset, read_header, read_image, to_levels
from medmpi.data.readers import is_image, read_mask

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (14, 12)).astype(np.uint8)
FRAMES = RNG.integers(0, 4096, (3, 14, 12)).astype(np.uint16)


def _write(path, **arrays):
    if path.suffix == ".npy":
        np.save(path, *arrays.values())
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".HDF5"])
def test_frames_and_colours(tmp_path, suffix):
    for array, frames in ((GREY, 1), (FRAMES, 3), (np.dstack([GREY] * 3), 1), (FRAMES / 7, 3), (GREY > 99, 1)):
        file = _write(tmp_path / f"x{suffix}", image=array)
        header, image = read_header(file), read_image(file)
        assert (header.image_size, header.frames, header.grey) == ((14, 12), frames, array.shape[-1] != 3)
        assert is_image(file)
        assert np.allclose(image.pixels.reshape(array.shape), array, rtol=1e-6)
    masks = read_mask(_write(tmp_path / f"m{suffix}", mask=FRAMES % 3))
    assert np.array_equal(masks, FRAMES % 3)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_damaged_ones_are_named(tmp_path, suffix):
    file = _write(tmp_path / f"x{suffix}", image=FRAMES)
    whole = file.read_bytes()
    for part in range(0, 16, 1 if suffix != ".h5" else 6):
        file.write_bytes(whole[: len(whole) * part // 16])
        with pytest.raises(DataError, match=f"x{suffix}"):
            read_image(file)
    _write(file, image=np.zeros((2, 3, 4, 5, 6)))
    with pytest.raises(DataError, match="shape"):
        read_image(file)
    _write(file, image=GREY.astype(np.complex64))
    with pytest.raises(DataError, match=r"complex64|not an array of numbers"):
        read_image(file)
    if suffix != ".npy":
        with pytest.raises(DataError, match="a data set of its own"):
            read_image(_write(tmp_path / f"set{suffix}", train_images=FRAMES, train_labels=np.zeros(3, int)))


def test_no_object_and_no_absurd_claim_is_loaded(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        read_image(tmp_path / "o.npy")
    head = np.lib.format.header_data_from_array_1_0(np.zeros((2, 2), np.uint8)) | {"shape": (20000, 20000)}
    with (tmp_path / "big.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        file.write(b"\0" * 1000)
    with pytest.raises(DataError, match="but holds 1000"):
        read_header(tmp_path / "big.npy")


def test_a_mixed_folder(tmp_path):
    """Formats mixed in class folders, one of them without a suffix."""
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        Image.fromarray(GREY + k).save(tmp_path / name / "one.png")
        Image.fromarray(GREY + k).save(tmp_path / name / "two", "PNG")
        for suffix in (".npy", ".npz", ".h5"):
            _write(tmp_path / name / f"three{suffix}", images=np.stack([GREY, GREY + k]))
        (tmp_path / name / "notes.txt").write_text("no image")
    dataset = open_dataset(f"folder:{tmp_path}", val_fraction=0)
    assert np.bincount(dataset.splits["train"].labels).tolist() == [8, 8]


def test_bits_of_values_without_bits_are_refused(tmp_path):
    image = read_image(_write(tmp_path / "x.npy", image=FRAMES / 7))
    assert to_levels(image, Levels()).max() == 255
    with pytest.raises(DataError, match=r"bits"):
        to_levels(image, Levels("bits"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_that_pillow_does_not_know(tmp_path, dtype, compression):
    tifffile = pytest.importorskip("tifffile")
    pixels = (RNG.random((40, 30)) * (1000 if dtype != np.uint32 else 2**32)).astype(dtype)
    file = tmp_path / "x.tif"
    tifffile.imwrite(file, pixels, compression=compression)
    assert read_header(file).image_size == (40, 30)
    assert np.array_equal(
        read_image(file).pixels[0, ..., 0], pixels.astype(np.float32 if dtype != np.uint32 else dtype)
    )
    if dtype == np.uint32:
        assert np.array_equal(read_mask(file)[0], pixels)
    whole = file.read_bytes()
    for part in range(16):
        file.write_bytes(whole[: len(whole) * part // 16])
        with pytest.raises(DataError, match=r"x\.tif"):
            read_image(file)


def test_decoding_under_a_limit_of_memory(real_data):
    """A batch system's limit on addresses must not end the decoder."""
    file = real_data("dicom") / "MR_small_RLE.dcm"
    code = (
        "import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from medmpi.data import read_image; print(read_image(pathlib.Path(sys.argv[1])).frames)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_tables_of_groups_from_a_spreadsheet(tmp_path):
    """A byte order mark, capitals, blanks and equal rows do no harm; two groups for one file do."""
    rows = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(GREY).save(tmp_path / name / f"{i}.png")
            rows.append(f"{name}/{i}.png, P{i}")
    table = tmp_path / "who.csv"
    table.write_text("\n".join(["File,Patient_ID", *rows, rows[0]]), encoding="utf-8-sig")
    dataset = open_dataset(f"folder:{tmp_path}?groups=who.csv", val_fraction=0.2)
    assert sorted(set(dataset.splits["train"].groups))[0].startswith("P")
    table.write_text("\n".join(["file,patient", *rows, "a/0.png,P9"]))
    with pytest.raises(DataError, match="two groups"):
        open_dataset(f"folder:{tmp_path}?groups=who.csv")


def test_the_range_of_rescaled_bits(tmp_path):
    """Hounsfield units of 12 bits: their range is that of the bits, not none."""
    pytest.importorskip("pydicom")
    pixels = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    image = read_image(write_dicom(tmp_path / "ct.dcm", pixels, bits=12, **rescaled))
    assert image.limits == (-1024, 2 * 4095 - 1024)
    plain = read_image(write_dicom(tmp_path / "plain.dcm", pixels, bits=12))
    assert np.array_equal(to_levels(image, Levels("bits")), to_levels(plain, Levels("bits")))
