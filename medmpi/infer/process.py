"""One image file from disk to its result: read, predict, write; an image that cannot be used is a result too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from medmpi.data import DataError, read_image
from medmpi.data.errors import MissingPackage
from medmpi.infer.outputs import write_masks
from medmpi.infer.predictor import Predictor

Result = dict[str, Any]


def state_of(file: Path) -> list[int]:
    """Size and time of change: a file with another state is another image."""
    try:
        found = file.stat()
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


class Processor:
    """Makes results with one model. ``masks`` are kinds of files; with none, NIfTI for NIfTI and PNG for the rest."""

    def __init__(self, predictor: Predictor, out: Path, masks: tuple[str, ...]) -> None:
        self.predictor, self.out, self.masks = predictor, out, masks

    def __call__(self, file: Path, name: str) -> Result:
        """The result as JSON: ``frames`` with class and probabilities, or areas; ``ms`` by part; or ``error``."""
        start = time.perf_counter()
        result: Result = {"file": str(file), "name": name, "state": state_of(file)}
        try:
            self._fill(result, file, name, start)
        except MissingPackage:
            raise
        except (DataError, FloatingPointError) as error:
            result["error"] = str(error)
        except MemoryError:
            result["error"] = f"{file}: it needs more memory than there is"
        result.setdefault("ms", {})["total"] = round(1000 * (time.perf_counter() - start), 3)
        return result

    def _fill(self, result: Result, file: Path, name: str, start: float) -> None:
        predictor = self.predictor
        image = read_image(file, axis=predictor.reading.axis)
        read = time.perf_counter()
        frames: list[dict[str, Any]] = []
        masks = []
        network: list[float] = []
        for frame in range(image.frames):
            pixels = predictor.pixels(image, frame)
            before = time.perf_counter()
            prediction = predictor.predict(pixels, image.image_size)
            network.append(1000 * (time.perf_counter() - before))
            if prediction.probabilities is not None:
                p = prediction.probabilities
                frames.append({"class": predictor.classes[prediction.label], "p": [round(float(v), 6) for v in p]})
            else:
                assert prediction.mask is not None
                counts = np.bincount(prediction.mask.reshape(-1), minlength=len(predictor.classes))
                frames.append({"pixels": counts.tolist()})
                masks.append(prediction.mask)
        predicted = time.perf_counter()
        if image.spacing is not None:
            result["pixel_mm2"] = round(image.spacing[0] * image.spacing[1], 9)
        if masks:
            kinds = self.masks or (("nifti",) if image.format == "nifti" else ("png",))
            if image.format != "dicom" and len(kinds) > 1:  # in a mixed folder only DICOM gets DICOM-SEG
                kinds = tuple(kind for kind in kinds if kind != "seg")
            files: list[Path] = []
            for kind in kinds:
                files += write_masks(
                    self.out / "masks" / name, kind, image, np.stack(masks), predictor.classes, predictor.reading.axis
                )
            result["masks"] = [f.relative_to(self.out).as_posix() for f in files]
        result["frames"] = frames
        result["ms"] = {
            "read": round(1000 * (read - start), 3),
            "network": [round(v, 3) for v in network],
            "predict": round(1000 * (predicted - read), 3),
            "write": round(1000 * (time.perf_counter() - predicted), 3),
        }
