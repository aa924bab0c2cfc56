"""The CUDA device, or why there is none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medmpi import kernels as K

from .finding import Finding


def device() -> Iterator[Finding]:
    """Arrays to a device and back, and a convolution there against the CPU's."""
    names = K.devices()
    if not names:
        yield no_device(K.missing_device(), _graphics_card())
        return
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 16, 16, 8), dtype=np.float32)
    weight = random.standard_normal((3, 3, 8, 16), dtype=np.float32)
    try:
        there = K.conv2d(K.to_device(x), K.to_device(weight), padding=1)
        difference = float(np.abs(K.to_host(there) - K.conv2d(x, weight, padding=1)).max())
    except RuntimeError as error:
        cure = "look at nvidia-smi; MEDMPI_SYNC=1 names the kernel; without the device: --device cpu"
        yield Finding("CUDA", "problem", f"{names[0]}: {error}", cure)
        return
    text = f"{len(names)}: {', '.join(names)}; a convolution there differs from the CPU's by {difference:.1e}"
    if difference > 1e-2:
        yield Finding("CUDA", "problem", text, "build again for this device: pip install --force-reinstall .")
    else:
        yield Finding("CUDA", "ok", text)


def no_device(reason: str, card: str) -> Finding:
    """Without a card that is a note; with one, something is missing."""
    if not card:
        return Finding("CUDA", "note", f"{reason}; no NVIDIA card here either")
    cure = "the card is not used: build again with nvcc on PATH (pip install --force-reinstall .)"
    if "built without" not in reason:
        cure = "the card is not used: does its driver fit? Look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    return Finding("CUDA", "warning", f"{card}, but {reason}", cure)


def _graphics_card() -> str:
    """The cards as the driver names them; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "an NVIDIA card whose driver does not answer"
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.splitlines()[0].split(" (UUID")[0]
    return "an NVIDIA card" if Path("/dev/nvidia0").exists() else ""
