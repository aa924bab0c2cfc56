"""NIfTI: orientation, affine, slices as a data set, and files that are broken."""

import gzip

import numpy as np
import pytest

from medmpi.data import DataError, open_dataset, read_header, read_image, read_mask
from medmpi.data.nifti import from_slices, to_slices, write_labels

nibabel = pytest.importorskip("nibabel")


def _volume(path, data, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def volumes(tmp_path):
    """Eight volumes of several sizes with a labelled cube each; every third slice or so has none."""
    rng = np.random.default_rng(0)
    for i in range(8):
        shape = (20 + i, 30 - i, 9)
        labels = np.zeros(shape, np.uint8)
        labels[5:9, 6:12, 2:5], labels[5:9, 12:15, 2:5] = 1, 2
        image = (rng.normal(100, 5, shape) + 80 * labels).astype(np.float32)
        _volume(tmp_path / "images" / f"case{i}.nii.gz", image)
        _volume(tmp_path / "labels" / f"case{i}.nii.gz", labels)
    return tmp_path


def test_slices_show_the_front_at_the_top():
    data = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    axial = to_slices(data, 2)
    assert axial.shape == (4, 3, 2)
    assert axial[1, 0, 1] == data[1, 2, 1]  # top row: the largest j; column: i
    for axis in range(3):
        assert np.array_equal(from_slices(to_slices(data, axis), axis), data)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_orientation_and_affine(tmp_path, codes):
    """However a volume is stored, slices look alike, and a voxel's place in mm is that of the slice's pixel."""
    rng = np.random.default_rng(1)
    ras = nibabel.Nifti1Image(rng.integers(0, 999, (5, 6, 7)).astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(ras.as_reoriented(turn), tmp_path / "v.nii.gz")
    for axis in range(3):
        image = read_image(tmp_path / "v.nii.gz", axis=axis)
        assert image.pixels.dtype == np.int16
        expected = to_slices(np.asarray(ras.dataobj), axis)
        assert np.array_equal(image.pixels[..., 0], expected)
        header = read_header(tmp_path / "v.nii.gz", axis=axis)
        assert (header.frames, *header.image_size) == expected.shape
        place = np.argwhere(expected == expected.max())[0]
        voxel = np.argwhere(np.asarray(ras.dataobj) == expected.max())[0]
        mm = image.affine @ [place[2], place[1], place[0], 1]
        assert np.allclose(mm[:3], voxel * [1, 2, 3])
    labels = (to_slices(np.asarray(ras.dataobj), 2) > 500).astype(np.uint8)
    write_labels(tmp_path / "out.nii.gz", labels, like=tmp_path / "v.nii.gz")
    written, source = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "v.nii.gz")
    assert np.array_equal(written.affine, source.affine)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj) > 500)
    assert written.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert not list(tmp_path.glob(".*"))


def test_data_set_keeps_a_volume_in_one_split(volumes):
    dataset = open_dataset(f"nifti:{volumes}", val_fraction=0.2)
    assert (dataset.task, dataset.classes, dataset.image_size) == ("segmentation", ("0", "1", "2"), (32, 32))
    groups = [set(split.groups) for split in dataset.splits.values()]
    assert [len(g) for g in groups] == [4, 2, 2]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    images, masks = dataset.splits["train"].read(np.arange(len(dataset.splits["train"])))
    assert images[masks == 2].mean() > images[masks == 1].mean() > images[masks == 0].mean()
    kept = open_dataset(f"nifti:{volumes}?empty=drop", val_fraction=0.2)
    assert len(kept.splits["train"]) == 3 * 4
    assert len(kept.splits["val"]) == 2 * 3  # what the option says of training only, cut before: whole volumes
    side = open_dataset(f"nifti:{volumes}?axis=sagittal", image_size=(16, 24))
    assert side.splits["test"].read([0])[0].shape == (1, 16, 24, 1)


def test_more_than_the_memory(volumes, monkeypatch):
    in_memory = open_dataset(f"nifti:{volumes}")
    monkeypatch.setattr("medmpi.data.entries._IN_MEMORY_BYTES", 0)
    from_files = open_dataset(f"nifti:{volumes}")
    ids = np.arange(len(in_memory.splits["train"]))[::-1]
    for mine, other in zip(in_memory.splits["train"].read(ids), from_files.splits["train"].read(ids), strict=True):
        assert np.array_equal(mine, other)


def test_real_volumes(real_data):
    folder = real_data("nifti")
    dataset = open_dataset(f"nifti:{folder / 'hippocampus'}", image_size=32)
    assert sum(len(set(s.groups)) for s in dataset.splits.values()) == 40
    assert dataset.classes == ("0", "1", "2")
    scaled = read_image(folder / "anatomical.nii")
    source = nibabel.as_closest_canonical(nibabel.load(folder / "anatomical.nii"))
    assert np.allclose(scaled.pixels[..., 0], to_slices(source.get_fdata(), 2))
    with pytest.raises(DataError, match="4-dimensional"):
        read_image(folder / "example4d.nii.gz")
    labels = sorted((folder / "hippocampus" / "labels").glob("*.nii.gz"))[0]
    assert set(np.unique(read_mask(labels))) == {0, 1, 2}


def _damaged(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


def test_broken_volumes(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 999, (12, 12, 12)).astype(np.int16)
    for name in ("v.nii", "v.nii.gz"):
        file = _volume(tmp_path / name, data)
        whole = file.read_bytes()
        for part in range(64):
            file.write_bytes(whole[: len(whole) * part // 64])
            with pytest.raises(DataError, match=name):
                read_image(file)
    good = _volume(tmp_path / "w.nii.gz", data).read_bytes()
    for at in rng.integers(20, len(good) - 8, 40):
        flipped = bytearray(good)
        flipped[at] ^= 0x10
        (tmp_path / "w.nii.gz").write_bytes(flipped)
        with pytest.raises(DataError):
            read_image(tmp_path / "w.nii.gz")
    claim = bytearray(_volume(tmp_path / "x.nii", data).read_bytes())
    claim[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "x.nii").write_bytes(claim)
    with pytest.raises(DataError, match=r"claims 30000x30000x30000 voxels"):
        read_image(tmp_path / "x.nii")
    with gzip.open(tmp_path / "x.nii.gz", "wb") as file:
        file.write(claim)
    with pytest.raises(DataError, match="claims"):
        read_header(tmp_path / "x.nii.gz")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.nii")


def test_values_that_have_no_levels(volumes):
    file = volumes / "images" / "case0.nii.gz"
    data = np.asarray(nibabel.load(file).dataobj).copy()
    data[3, 4, 5] = np.nan
    _volume(file, data)
    with pytest.raises(DataError, match=r"case0.nii.gz: 1 of its pixels are NaN or infinite; give \?nan=fill"):
        open_dataset(f"nifti:{volumes}")
    assert open_dataset(f"nifti:{volumes}?nan=fill").splits["train"].read([0])[0].max() > 0
    assert len(open_dataset(f"nifti:{volumes}?bad=skip").skipped) == 1
    _volume(file, np.full_like(data, 7))
    assert open_dataset(f"nifti:{volumes}").image_size == (32, 32)  # one value only: black


def test_layouts_that_do_not_fit(volumes):
    (volumes / "labels" / "case3.nii.gz").rename(volumes / "labels" / "other.nii.gz")
    with pytest.raises(DataError, match=r"case3.nii.gz: it has no label volume"):
        open_dataset(f"nifti:{volumes}")
    (volumes / "images" / "case3.nii.gz").rename(volumes / "images" / "other.nii.gz")
    _volume(volumes / "labels" / "case1.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match=r"case1.nii.gz: it is 3 frames of 3x3, case1.nii.gz is 9 frames"):
        open_dataset(f"nifti:{volumes}")
    with pytest.raises(DataError, match="for segmentation"):
        open_dataset(f"nifti:{volumes}", task="classification")
    with pytest.raises(ValueError, match="axis=up"):
        open_dataset(f"nifti:{volumes}?axis=up")


def test_headers_that_make_no_sense(tmp_path):
    """A NaN in the affine, and bytes of the header changed at random: an image or a DataError, nothing else."""
    rng = np.random.default_rng(0)
    file = _volume(tmp_path / "v.nii", rng.integers(0, 99, (6, 5, 4)).astype(np.int16))
    whole = file.read_bytes()
    bad = bytearray(whole)
    bad[280:284] = np.float32("nan").tobytes()  # srow_x
    file.write_bytes(bad)
    for read in (read_image, read_header):
        with pytest.raises(DataError, match="affine is not finite"):
            read(file)
    for _ in range(200):
        changed = bytearray(whole)
        for at in rng.integers(0, 348, 2):
            changed[at] = int(rng.integers(256))
        file.write_bytes(changed)
        try:
            header, image = read_header(file), read_image(file)
        except DataError:
            continue
        assert image.pixels.shape[:3] == (header.frames, *header.image_size)
