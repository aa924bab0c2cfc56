"""What reads and writes images: the packages behind the extras, each tried with a file of its own."""

from __future__ import annotations

import importlib
import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .finding import Finding

_DICOM = {  # transfer syntaxes in which hospitals send: their names
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
}


def readers(folder: Path) -> Iterator[Finding]:
    """Pictures, HDF5 in ``folder`` (whose disk may not know locks), DICOM, NIfTI and slides."""
    yield _tried("pictures", ("PIL",), "", _pictures)
    yield _tried("HDF5", ("h5py",), "io", lambda: _hdf5(folder))
    yield _tried("DICOM", ("pydicom",), "io", _dicom)
    yield _tried("NIfTI", ("nibabel",), "io", lambda: "")
    yield _tried("slides", ("openslide", "tifffile"), "slide", _slides)


def _tried(subject: str, packages: tuple[str, ...], extra: str, attempt: Callable[[], str]) -> Finding:
    """A missing package is a note, one that is there and does not work a problem."""
    install = f"pip install 'medmpi[{extra}]'"
    versions = []
    for package in packages:
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError:
            return Finding(subject, "note", f"not read: {package} is not installed", install)
        except (ImportError, OSError) as error:  # a shared library that is missing or does not fit
            return Finding(subject, "problem", f"{package} does not load: {error}", f"{install} --force-reinstall")
        versions.append(f"{package} {getattr(module, '__version__', '')}".strip())
    try:
        more = attempt()
    except _Missing as missing:
        return Finding(subject, "warning", f"{', '.join(versions)}, {missing}", install)
    except Exception as error:
        cure = "reinstall: " + install
        if subject == "HDF5" and "lock" in str(error).lower():
            cure = "this disk knows no file locks: export HDF5_USE_FILE_LOCKING=FALSE, or name another folder"
        return Finding(subject, "problem", f"{', '.join(versions)}: {error}", cure)
    return Finding(subject, "ok", ", ".join([*versions, *filter(None, [more])]))


class _Missing(Exception):
    """Works, but not all of it is there."""


def _pictures() -> str:
    from PIL import Image

    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    if not np.array_equal(np.asarray(Image.open(file)), image):
        raise ValueError("a PNG is read otherwise than it was written")
    return "PNG written and read"


def _hdf5(folder: Path) -> str:
    """Writes, closes, and opens twice for reading, as ranks do."""
    import h5py

    data = np.arange(1000, dtype=np.uint16)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".medmpi-doctor.") as place:
        path = Path(place) / "try.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("images", data=data, compression="gzip", chunks=(100,))
        with h5py.File(path, "r") as one, h5py.File(path, "r") as two:
            if not (np.array_equal(one["images"][:], data) and np.array_equal(two["images"][:], data)):
                raise ValueError("a file is read otherwise than it was written")
    return f"library {h5py.version.hdf5_version}, compressed file written and read"


def _dicom() -> str:
    """Which compressed transfer syntaxes have a decoder."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    here: list[str] = []
    gone: list[str] = []
    for uid, name in _DICOM.items():
        try:
            (here if get_decoder(UID(uid)).is_available else gone).append(name)
        except NotImplementedError:
            gone.append(name)
    if gone:
        raise _Missing(f"no decoder for {', '.join(gone)}")
    return "decodes " + ", ".join(here)


def _slides() -> str:
    import openslide
    import tifffile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "try.tiff"
        image = np.full((256, 256, 3), 200, np.uint8)
        tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb")
        with openslide.OpenSlide(path) as slide:
            same = np.array_equal(np.asarray(slide.read_region((0, 0), 0, (256, 256)))[..., :3], image)
    if not same:
        raise ValueError("a tiled TIFF is read otherwise than it was written")
    if importlib.util.find_spec("imagecodecs") is None:
        raise _Missing("no imagecodecs, which reads JPEG 2000 and JPEG XR slides without OpenSlide")
    return f"OpenSlide library {openslide.__library_version__}, tiled TIFF written and read"
