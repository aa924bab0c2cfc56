"""Writes a slide as DICOM: a folder of one VL Whole Slide Microscopy instance a level."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid


def write_dicom_slide(folder: Path, pixels: np.ndarray, *, levels: int = 2, mpp: float = 0.25, tile: int = 256) -> None:
    """Levels of half the size each, JPEG tiles."""
    folder.mkdir()
    study, series, frame_of_reference = (generate_uid() for _ in range(3))
    for level in range(levels):
        h, w = pixels.shape[:2]
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame_of_reference
        data.Modality, data.InstanceNumber = "SM", level + 1
        data.ImageType = ["DERIVED" if level else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
        data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns, data.Rows, data.Columns = h, w, tile, tile
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
        measures, groups, path = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, measures.SliceThickness = [mpp * 2**level / 1000] * 2, 0.001
        groups.PixelMeasuresSequence = pydicom.Sequence([measures])
        data.SharedFunctionalGroupsSequence = pydicom.Sequence([groups])
        path.OpticalPathIdentifier = "1"
        data.OpticalPathSequence, data.NumberOfOpticalPaths = pydicom.Sequence([path]), 1
        frames = []
        for y in range(0, h, tile):
            for x in range(0, w, tile):
                part = np.full((tile, tile, 3), 255, np.uint8)
                cut = pixels[y : y + tile, x : x + tile]
                part[: cut.shape[0], : cut.shape[1]] = cut
                out = io.BytesIO()
                Image.fromarray(part).save(out, "jpeg", quality=95, subsampling=1)
                frames.append(out.getvalue())
        data.NumberOfFrames = len(frames)
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
        data.save_as(folder / f"level{level}.dcm", enforce_file_format=True)
        h, w = h // 2 * 2, w // 2 * 2
        pixels = pixels[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
