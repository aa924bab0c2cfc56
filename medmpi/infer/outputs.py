"""Predicted masks as files: PNG, NIfTI with the input's affine, DICOM-SEG."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmpi import __version__
from medmpi.data import DataError, MedicalImage
from medmpi.data.nifti import write_labels, write_volume
from medmpi.files import write_whole

Masks = NDArray[np.uint8]
_COLOURS = (0, 0, 0, 230, 60, 50, 60, 180, 75, 0, 130, 200, 255, 225, 25, 145, 30, 180, 70, 240, 240, 240, 50, 230)


def write_masks(
    base: Path, kind: str, image: MedicalImage, masks: Masks, classes: tuple[str, ...], axis: int
) -> list[Path]:
    """Masks (frames, h, w) of an image as ``base`` with the suffixes of ``kind``; the files.

    DataError where the input has not what the kind needs (DICOM for "seg").
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        return [_png(_numbered(base, i, len(masks)), mask) for i, mask in enumerate(masks)]
    if kind == "nifti":
        target = base.with_name(base.name + ".nii.gz")
        if image.format == "nifti":
            write_labels(target, masks, like=Path(image.path), axis=axis)
        else:
            write_volume(target, masks, image.affine, image.spacing)
        return [target]
    if image.format != "dicom":
        raise DataError(image.path, "a DICOM segmentation refers to a DICOM image, this is none", "give --masks png")
    return [_dicom_seg(base.with_name(base.name + ".seg.dcm"), image, masks, classes)]


def _numbered(base: Path, frame: int, frames: int) -> Path:
    return base.with_name(f"{base.name}.png" if frames == 1 else f"{base.name}_{frame:04}.png")


def _png(path: Path, mask: Masks) -> Path:
    """Class numbers as palette indices: a mask to programs, colours to people."""
    picture = Image.fromarray(mask).convert("P")
    palette = list(_COLOURS) + [v for k in range(8, 256) for v in ((k * 67) % 256, (k * 131) % 256, (k * 29) % 256)]
    picture.putpalette(palette[: 3 * 256])
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return _whole(path, out.getvalue())


def _dicom_seg(path: Path, image: MedicalImage, masks: Masks, classes: tuple[str, ...]) -> Path:
    """A binary segmentation object (PS3.3 A.51), one segment for each class but the background."""
    try:
        import highdicom
    except ImportError:
        raise DataError(image.path, "writing DICOM-SEG needs highdicom", "pip install 'medmpi[infer]'") from None
    import pydicom

    # Its warnings quote patients' names.
    warnings.filterwarnings("ignore", module=r"highdicom\b")
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    source = pydicom.dcmread(image.path)
    algorithm = highdicom.AlgorithmIdentificationSequence("medmpi", codes.DCM.ArtificialIntelligence, __version__)
    described = [
        SegmentDescription(
            segment_number=k,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for k, name in enumerate(classes[1:], 1)
    ]
    try:
        _complete(source)
        made = Segmentation(
            source_images=[source],
            pixel_array=masks,
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medmpi",
            manufacturer_model_name="medmpi infer",
            software_versions=__version__,
            device_serial_number="0",
            omit_empty_frames=False,
        )
        wanted = len(masks) * (len(classes) - 1)
        if int(made.NumberOfFrames) != wanted:  # highdicom leaves out frames of objects that are to have one
            raise ValueError(f"its {len(masks)} frames are no multi-frame object of DICOM")
        measures = made.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
        if measures and "SliceThickness" not in measures[0]:
            measures[0].SliceThickness = None  # a plain picture has none; highdicom reads no measures without it
        out = io.BytesIO()
        made.save_as(out)
    except Exception as error:  # it asks for many elements, each in its way
        raise DataError(image.path, f"no DICOM segmentation can refer to it ({error})", "give --masks png") from error
    return _whole(path, out.getvalue())


def _complete(source: object) -> None:
    """Elements that may be empty in a source but must be there to be copied (type 2)."""
    for name in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
        "AccessionNumber", "ReferringPhysicianName",
    ):  # fmt: skip
        if not hasattr(source, name):
            setattr(source, name, "")


def _whole(path: Path, content: bytes) -> Path:
    write_whole(path, content)
    return path
