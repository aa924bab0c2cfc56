"""Peak memory of training steps, ours and torch's: each side in a process of its own, above what its imports take."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medmpi import kernels

from .bench_train import JOBS, Job, our_step, torch_steps

STEPS = 4


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB: VmRSS now, VmHWM the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"bench memory: /proc/self/status has no {field}")


def sample(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((job.batch, job.size, job.size, job.channels), dtype=np.float32)
    return x, rng.integers(0, job.classes, x.shape[:3] if job.model == "unet" else x.shape[0])


def worker(side: str, model: str) -> None:
    """Prints the MiB that some steps need at most, model and images included."""
    job = next(job for job in JOBS if job.model == model)
    kernels.set_threads(1)
    if side != "medmpi":
        import torch

        torch.set_num_threads(1)
        # what the libraries set up once, in the first call, is not the step's
        torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3))
    x, labels = sample(job)
    before = resident("VmRSS")
    work = our_step(job, x, labels) if side == "medmpi" else torch_steps(job, x, labels, only=side)[side]
    for _ in range(STEPS):
        work()
    print(resident("VmHWM") - before)


def measured(side: str, job: Job) -> float:
    """MiB of one side."""
    command = [sys.executable, "-m", "bench.bench_memory", side, job.model]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(only: str) -> Iterator[dict[str, object]]:
    """One per job."""
    for job in JOBS:
        if only in job.model:
            mib = {side: measured(side, job) for side in ("medmpi", "torch_nchw", "torch_nhwc")}
            ratio = mib["medmpi"] / min(mib["torch_nchw"], mib["torch_nhwc"])
            yield {
                "family": "memory", "case": f"{job.model} {job.size}x{job.size} batch {job.batch}",
                "mib": mib, "mib_per_image": mib["medmpi"] / job.batch, "ratio": round(ratio, 4),
            }  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Prints ours / torch's (below 1 is better), for all jobs."""
    from .machine import describe

    for result in rows(options.only):
        mib = result["mib"]
        assert isinstance(mib, dict)
        text = "  ".join(f"{name} {value:.0f}" for name, value in mib.items())
        print(f"{result['case']:36s}{text} MiB  {result['ratio']}", flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps({**result, "machine": describe()}) + "\n")
    return 0


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2])
