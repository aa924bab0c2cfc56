"""DICOM files through pydicom and its decoders (extra ``io``).

Nothing that a header claims is believed (``dicom_header``); compressed frames are checked for being whole, which codecs
are not that careful about, and are decoded in another process (``decoder``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import decoder
from .dicom_header import ADVICE, GREY, Found, check_fragments, load_pydicom, read_found, whole_number
from .dicom_native import read_native
from .errors import guarded
from .medical import Header, MedicalImage

_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


def read_dicom_header(file: Path) -> Header:
    """Size, frames and patient; the pixels are not looked at."""
    return guarded(file, "DICOM", ADVICE, lambda: _header(file))


def read_dicom(file: Path) -> MedicalImage:
    """All frames, after the modality transformation.

    DataError names the file for whatever is wrong: no DICOM, no pixels, absurd sizes, truncated, not decodable.
    """
    return guarded(file, "DICOM", ADVICE, lambda: _read(file))


def decode_here(path: str) -> NDArray[Any]:
    """pydicom's pixels of a file, in this process."""
    pydicom = load_pydicom()
    dataset = pydicom.dcmread(path, force=True)
    # Pillow's libjpeg is the most tried of all JPEG decoders; it does not know 12 bits.
    plugin = "pillow" if str(dataset.file_meta.TransferSyntaxUID) == _JPEG_BASELINE else ""
    dataset.pixel_array_options(decoding_plugin=plugin)
    pixels: NDArray[Any] = dataset.pixel_array
    return pixels


def _header(file: Path) -> Header:
    found = read_found(file)
    grey = found.photometric in GREY
    return Header((found.rows, found.columns), grey, found.frames, _patient(found.dataset), "dicom")


def _patient(dataset: Any) -> str | None:
    return str(dataset.get("PatientID", "") or "").strip() or None


def _read(file: Path) -> MedicalImage:
    found = read_found(file)
    if found.compressed:
        check_fragments(file, found)
        pixels = decoder.decode(str(file))
    else:
        plain = _plain(file, found)
        pixels = decode_here(str(file)) if plain is None else plain
    pixels = np.asarray(pixels).reshape(found.frames, found.rows, found.columns, -1)
    if pixels.dtype.byteorder == ">":
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    dataset = found.dataset
    if found.photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = np.asarray(apply_color_lut(pixels[..., 0], dataset))
        bits = 8 * pixels.dtype.itemsize
    else:
        bits = whole_number(file, dataset, "BitsStored", 1, 64, missing=8 * pixels.dtype.itemsize)
    stored = pixels
    if found.photometric in GREY:
        pixels = _modality(dataset, pixels)
    window, table = _interest(dataset, grey=found.photometric in GREY)
    spacing, affine = _geometry(dataset)
    return MedicalImage(
        path=str(file),
        pixels=pixels,
        format="dicom",
        bits=bits if pixels is stored and pixels.dtype.kind != "f" else 0,
        limits=None if pixels is stored or stored.dtype.kind == "f" else _rescaled_limits(dataset, stored, bits),
        spacing=spacing,
        affine=affine,
        window=window,
        window_function=str(dataset.get("VOILUTFunction", "") or "LINEAR"),
        table=table,
        inverted=found.photometric == "MONOCHROME1",
        group=_patient(dataset),
        tags={n: str(dataset.get(n, "")) for n in ("Modality", "SOPInstanceUID", "SeriesInstanceUID")},
    )


def _plain(file: Path, found: Found) -> NDArray[Any] | None:
    """Grey pixels of 8 or 16 bits as they lie in the file; None for all others."""
    dataset = found.dataset
    allocated, stored, high, sign = (
        whole_number(file, dataset, name, 0, 64, missing=-1)
        for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    )
    if found.photometric not in GREY or found.syntax not in _NATIVE or allocated not in (8, 16):
        return None
    little = found.syntax != _BIG_ENDIAN
    if not little and allocated == 8:  # in words, whose bytes are swapped
        return None
    high = stored - 1 if high == -1 else high
    if not 1 <= stored <= high + 1 <= allocated or sign not in (0, 1) or not found.whole_numbers:
        return None
    shape = found.frames, found.rows, found.columns
    return read_native(
        file, found.pixels_at, shape, allocated=allocated, stored=stored, high=high, signed=sign == 1, little=little
    )


def _modality(dataset: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Stored to physical values (PS3.3 C.11.1), in the smallest dtype that holds them exactly, else float32."""
    if "ModalityLUTSequence" in dataset:
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(pixels, dataset))
    slope, intercept = (_number(dataset, n, d) for n, d in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    if (slope, intercept) == (1.0, 0.0) or slope == 0 or pixels.dtype.kind == "f":
        return pixels if (slope, intercept) == (1.0, 0.0) else pixels.astype(np.float32) * slope + intercept
    if slope.is_integer() and intercept.is_integer() and pixels.size:
        ends = [int(v) * int(slope) + int(intercept) for v in (pixels.min(), pixels.max())]
        for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                return (pixels.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _rescaled_limits(dataset: Any, stored: NDArray[Any], bits: int) -> tuple[float, float] | None:
    """Physical values of the smallest and the largest stored value; None behind a table."""
    if "ModalityLUTSequence" in dataset:
        return None
    slope, intercept = (_number(dataset, n, d) for n, d in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    ends = low * slope + intercept, high * slope + intercept
    return min(ends), max(ends)


def _number(dataset: Any, name: str, missing: float) -> float:
    value = dataset.get(name)
    if value is None or value == "":
        return missing
    number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    return number if np.isfinite(number) else missing


def _interest(
    dataset: Any, *, grey: bool
) -> tuple[tuple[float, float] | None, tuple[float, NDArray[np.float64]] | None]:
    """The file's own window or table: the first one, as viewers show it."""
    if not grey:
        return None, None
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        item = sequence[0]
        descriptor = [int(v) for v in item.LUTDescriptor]
        data = item.LUTData
        values = np.frombuffer(data, np.uint16) if isinstance(data, bytes) else np.asarray(data, dtype=np.float64)
        values = values[: descriptor[0] or 65536].astype(np.float64)
        if len(values):
            return None, (float(descriptor[1]), values / (2 ** min(max(descriptor[2], 1), 16) - 1))
    centre, width = (_number(dataset, n, float("nan")) for n in ("WindowCenter", "WindowWidth"))
    if np.isfinite(centre) and np.isfinite(width) and width > 0:
        return (centre, width), None
    return None, None


def _geometry(dataset: Any) -> tuple[tuple[float, float] | None, NDArray[np.float64] | None]:
    """Pixel spacing in mm and the map to RAS+ from the position and orientation of the plane (PS3.3 C.7.6.2)."""
    shared = dataset
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        sequence = dataset.get(name)
        if "PixelSpacing" not in shared and sequence and sequence[0].get("PixelMeasuresSequence"):
            shared = sequence[0].PixelMeasuresSequence[0]
    spacing = None
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = shared.get(name)
        if value is not None and len(value) == 2 and all(float(v) > 0 for v in value):
            spacing = (float(value[0]), float(value[1]))
            break
    try:
        position = np.array([float(v) for v in dataset.ImagePositionPatient])
        along = np.array([float(v) for v in dataset.ImageOrientationPatient]).reshape(2, 3)
    except (AttributeError, TypeError, ValueError):
        return spacing, None
    if spacing is None or position.shape != (3,):
        return spacing, None
    thickness = _number(shared, "SpacingBetweenSlices", _number(shared, "SliceThickness", 1.0)) or 1.0
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along[0] * spacing[1], along[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(along[0], along[1]) * thickness, position
    return spacing, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM is LPS+
