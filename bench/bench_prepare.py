"""``medmpi prepare`` of generated mammograms on one and on two ranks of one thread, start-up included.

``python -m bench prepare``: 1000 DICOM files of 1024x1024, 12 bits, uncompressed; ranks take turns and the best of
three runs counts, once with all steps (median, CLAHE, breast crop, 512x512) and once with none. ``--only`` takes one of
the two by its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medmpi.parallel.run import find_mpirun

from .machine import describe

FILES, SIDE, RUNS = 1000, 1024, 3
RANKS = (1, 2)
STEPS = {
    "all steps": ["--denoise", "median:3", "--contrast", "clahe", "--crop", "breast", "--image-size", "512"],
    "no step": [],
}


def write_mammograms(folder: Path, files: int, side: int = SIDE) -> None:
    """A bright half disc with texture on black, each file another one."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    noise = rng.standard_normal((2 * side, 2 * side), dtype=np.float32)
    for i in range(files):
        centre, radius = 0.5 + 0.1 * np.sin(i), 0.6 + 0.1 * np.cos(3 * i)
        depth = np.clip(1 - (x * x + (y - centre) ** 2) / radius**2, 0, None)
        top, left = rng.integers(0, side, 2)
        grain = noise[top : top + side, left : left + side] * (40 * (depth > 0) + 4)
        pixels = np.clip(3000 * np.sqrt(depth) + grain + 60, 0, 4095).astype(np.uint16)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"  # digital mammography
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.PatientID, dataset.Modality = f"P{i // 4:04}", "MG"
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelSpacing = [0.2, 0.2]
        dataset.PixelData = pixels.tobytes()
        pydicom.dcmwrite(folder / f"{i:04}.dcm", dataset, enforce_file_format=True)


def prepare(inputs: Path, out: Path, ranks: int, flags: list[str]) -> tuple[float, float]:
    """Seconds from launch to end, and the largest memory of a rank in MB."""
    command = [str(find_mpirun()), "-n", str(ranks), sys.executable, "-m", "medmpi.prepare", str(inputs)]
    start = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--out", str(out), "--threads", "1", "--quiet", *flags], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"bench prepare: exit status {status}")
    return seconds, usage.ru_maxrss / 1e3  # of the largest of its children


def main(options: argparse.Namespace) -> int:
    """Generates, measures, prints and writes."""
    with tempfile.TemporaryDirectory(prefix="medmpi-prepare-") as folder:
        inputs = Path(folder) / "in"
        inputs.mkdir()
        write_mammograms(inputs, FILES)
        for name, flags in STEPS.items():
            if options.only not in name:
                continue
            best: dict[int, float] = {}
            memory: dict[int, float] = {}
            for _ in range(RUNS):
                for ranks in RANKS:
                    out = Path(folder) / "out"
                    seconds, peak = prepare(inputs, out, ranks, flags)
                    shutil.rmtree(out)
                    best[ranks] = min(seconds, best.get(ranks, seconds))
                    memory[ranks] = max(peak, memory.get(ranks, 0.0))
            shown = ", ".join(f"{r} ranks {best[r]:.2f} s, {memory[r]:.0f} MB a rank" for r in RANKS)
            print(f"{FILES} files of {SIDE}x{SIDE}, {name}: {shown}; ratio {best[1] / best[2]:.2f}", flush=True)
            if options.out is not None:
                line = {"family": "prepare", "case": name, "files": FILES, "seconds": best, "megabytes": memory}
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "machine": describe()}) + "\n")
    return 0
