"""One rank and two on a synthetic slide of 20,000 x 20,000 pixels, from the slide's file to its heatmap and picture.

``python -m bench slide`` draws the slide (a JPEG pyramid, half of it tissue) and a classifier with random weights, then
runs ``medmpi slide predict`` on one and on two ranks of one thread in turn, and prints wall times, their ratio and the
largest memory of a rank. Everything is in the time: start-up, tissue, timing of the convolutions, scores, stitching.

A rank is a thread that computes and one that reads ahead. Free, a rank alone has its reader on an idle core, which two
ranks on two cores have not; bound to a core each (``mpirun --bind-to core``, as Open MPI does by itself and Slurm with
one core a task), two ranks have just twice of what one has. Both are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import nn
from medmpi.models.saved import ModelSpec
from medmpi.parallel.run import find_mpirun

SIDE, LEVELS, TILE, STRIPE, STRIDE = 20_000, 6, 256, 2500, 16
WINDOW = 224
NAMES = {False: "free", True: "bound to a core each"}


def draw_slide(path: Path, side: int = SIDE) -> None:
    """Stripes of tissue with nuclei in it. A level's tiles in a column take turns of four, so that it is quick."""
    import imagecodecs
    import tifffile

    rng = np.random.default_rng(0)
    tissue = []
    for _ in range(4):
        image = np.full((TILE, TILE, 3), (224, 160, 200), np.float32) + rng.normal(0, 8, (TILE, TILE, 1))
        y, x = np.mgrid[:TILE, :TILE]
        for cy, cx, r in zip(*rng.uniform(0, TILE, (2, 60)), rng.uniform(3, 8, 60), strict=True):
            image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = (110, 60, 140)
        tissue.append(image.clip(0, 255).astype(np.uint8))

    def tiles(n: int, factor: int) -> Iterator[bytes]:
        columns = []
        for x in range(0, n, TILE):
            inside = (x + np.arange(TILE)) * factor // STRIPE % 2 == 0
            columns.append(
                [imagecodecs.jpeg_encode(np.where(inside[:, None], t, np.uint8(244)), level=85) for t in tissue]
            )
        for row in range(-(-n // TILE)):
            yield from (column[row % len(column)] for column in columns)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(LEVELS):
            n, mpp = side >> level, 0.25 * 2**level
            file.write(
                tiles(n, 1 << level), shape=(n, n, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="ycbcr",
                compression="jpeg", resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0, metadata=None, subsampling=(2, 2),
            )  # fmt: skip


def save_model(path: Path, name: str = "valid_cnn", window: int = WINDOW) -> None:
    """A classifier with random weights, as training would leave it."""
    spec = ModelSpec(
        name, "classification", ("normal", "tumour"), 3, (window, window), (0.6, 0.5, 0.5), (0.2, 0.2, 0.2), {}
    )
    graph = spec.build().fuse()
    nn.Parameters(graph, seed=1)
    nn.checkpoint.save(path, nn.checkpoint.state_dict(graph), spec.to_metadata())


def environment() -> dict[str, str]:
    """One thread a rank; the allocator as a user has it."""
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run_ranks(ranks: int, words: list[str], *, bound: bool = False) -> dict[str, Any]:
    """Wall seconds of ``medmpi slide`` on so many ranks, the largest resident memory of one (MiB), what it printed."""
    binding = ["--bind-to", "core"] if bound else []
    command = [str(find_mpirun()), *binding, "-n", str(ranks), sys.executable, "-m", "medmpi.cli", "slide", *words]
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for pid in ranks_in(Path(words[-1])):
                peaks[pid] = max(peaks.get(pid, 0), peak(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    out = process.communicate()[0]
    seconds = time.monotonic() - start
    over.set()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{out}")
    return {"seconds": seconds, "mib": max(peaks.values()) / 1024, "out": out}


def ranks_in(folder: Path) -> list[int]:
    """Process ids of the ranks that work in a folder."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            variables = Path("/proc", name, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and any(v.startswith((b"PMI_RANK=", b"OMPI_")) for v in variables):
            found.append(int(name))
    return sorted(found)


def peak(pid: int) -> int:
    """Highest resident memory of a process in KiB, 0 where it is gone."""
    try:
        match = re.search(r"VmHWM:\s+(\d+)", Path("/proc", str(pid), "status").read_text())
    except OSError:
        return 0
    return int(match[1]) if match else 0


def digest(folder: Path) -> str:
    """Of the scores of all groups."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("results/*/*.safetensors")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def main(options: argparse.Namespace) -> int:
    """One and two ranks in turn, free and bound to a core each, ``--trials`` times (2 when it is not given)."""
    trials = options.trials or 2
    times: dict[bool, dict[int, list[float]]] = {bound: {1: [], 2: []} for bound in (False, True)}
    memory, digests = 0.0, set()
    with tempfile.TemporaryDirectory(prefix="medmpi-slide-") as name:
        root = Path(name)
        begin = time.monotonic()
        draw_slide(root / "slide.tif")
        save_model(root / "model.safetensors")
        size = (root / "slide.tif").stat().st_size / 1e6
        print(f"slide of {SIDE}x{SIDE} ({size:.0f} MB) drawn in {time.monotonic() - begin:.1f} s", flush=True)
        words = ["predict", str(root / "slide.tif"), "--model", str(root / "model.safetensors"), "--no-tune",
                 "--stride", str(STRIDE), "--out"]  # fmt: skip
        for trial in range(trials):
            for bound in (False, True):
                for ranks in (1, 2) if trial % 2 == 0 else (2, 1):
                    folder = root / f"{ranks}-{trial}-{bound}"
                    result = run_ranks(ranks, [*words, str(folder)], bound=bound)
                    times[bound][ranks].append(result["seconds"])
                    memory = max(memory, result["mib"])
                    digests.add(digest(folder))
                    said = next(line for line in result["out"].splitlines() if "windows in" in line)
                    print(
                        f"{ranks} ranks, {NAMES[bound]}: {result['seconds']:.1f} s, at most {result['mib']:.0f} MiB a"
                        f" rank; {said}",
                        flush=True,
                    )
    same = len(digests) == 1
    ratios = {NAMES[bound]: _ratios(times[bound]) for bound in times}
    for case, ratio in ratios.items():
        print(f"two ranks, {case}: x {ratio['best']:.2f} (best), x {ratio['median']:.2f} (median)")
    print(f"results {'equal' if same else 'DIFFER'}; at most {memory:.0f} MiB a rank")
    if options.out is not None:
        from .machine import describe

        line = {
            "family": "slide", "case": f"predict {SIDE}x{SIDE} valid_cnn {WINDOW} stride {STRIDE}",
            "seconds": {NAMES[bound]: found for bound, found in times.items()}, "speed_up": ratios,
            "mib": round(memory), "same_bytes": same, "machine": describe(),
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return int(not same)


def _ratios(times: dict[int, list[float]]) -> dict[str, float]:
    """One rank's time to that of two."""
    return {
        "best": round(min(times[1]) / min(times[2]), 3),
        "median": round(statistics.median(times[1]) / statistics.median(times[2]), 3),
    }
