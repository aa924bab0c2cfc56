"""``python -m bench FAMILY [--against torch]``: times medmpi beside its rivals on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

FAMILIES = (
    "conv2d",
    "batchnorm",
    "pool",
    "filter",
    "image",
    "linear",
    "optimizer",
    "loss",
    "train",
    "infer",
    "ranks",
    "plan",
    "pipeline",
    "memory",
    "allreduce",
    "work",
    "balance",
    "scaling",
    "faults",
    "prepare",
    "slide",
    "slide_faults",
    "strong",
)

DEVICE_FAMILIES = ("conv2d", "linear", "memory_bound")


def on_device(options: argparse.Namespace, rivals: set[str]) -> int:
    """The family's cases on a CUDA device; 1 where there is none."""
    from medmpi import kernels

    from .device import run
    from .machine import describe

    if options.family not in DEVICE_FAMILIES:
        sys.stderr.write(
            f"bench: {options.family} has no cases for cuda, expected one of {', '.join(DEVICE_FAMILIES)}\n"
        )
        return 2
    if not kernels.devices():
        sys.stderr.write(f"bench: there is no CUDA device: {kernels.missing_device()}\n")
        return 1
    module = importlib.import_module(f".device_{options.family}", __package__)
    cases = module.cases(rivals, options.precision.split(","), options.only)
    return run(options.family, cases, {**describe(), "backend": "cuda"}, options, "torch" in rivals)


def main() -> int:
    """Parse, restart with the allocator that suits the rivals, measure, print, and write JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("family", choices=sorted({*FAMILIES, *DEVICE_FAMILIES}))
    parser.add_argument(
        "--against",
        default="torch",
        help="rivals, separated by commas: torch, scipy, opencv, openvino, onnxruntime, none",
    )
    parser.add_argument("--threads", default="1,2", help="thread counts, separated by commas (default 1,2)")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time for one case")
    parser.add_argument(
        "--backend", default=None, help="kernel backend (default: the best of this machine); cuda: on the device"
    )
    parser.add_argument("--precision", default="fp32,tf32,bf16", help="with --backend cuda: of products")
    parser.add_argument("--out", type=Path, default=None, help="append JSON lines, e.g. bench/results/conv2d.jsonl")
    parser.add_argument("--default-allocator", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument(
        "--trials",
        type=int,
        default=None,
        help="faults: runs that are struck (20; slides: 50); slide: pairs of runs (2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="faults: of the strikes")
    parser.add_argument("--jobs", type=int, default=2, help="faults: runs at a time")
    options = parser.parse_args()

    from .machine import TUNED_ALLOCATOR

    if not options.default_allocator and os.environ.get("GLIBC_TUNABLES") != TUNED_ALLOCATOR:
        environment = {**os.environ, "GLIBC_TUNABLES": TUNED_ALLOCATOR}
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], environment)

    from medmpi import kernels

    from .harness import Results, run
    from .machine import describe

    rivals = set() if options.against == "none" else set(options.against.split(","))
    if options.backend == "cuda":
        return on_device(options, rivals)
    if options.backend:
        kernels.use_backend(options.backend)
    module = importlib.import_module(f".bench_{options.family}", __package__)
    if hasattr(module, "main"):  # whole-process benchmarks time themselves
        return int(module.main(options))
    results = Results(options.family, describe(), options.out)
    named = {"only": options.only} if options.family in ("infer", "train") else {}  # whose cases take long to make
    for threads in map(int, options.threads.split(",")):
        kernels.set_threads(threads)
        if "torch" in rivals:
            import torch

            torch.set_num_threads(threads)
        run(
            (c for c in module.cases(rivals, **named) if options.only in c.name),
            results,
            threads,
            seconds=options.seconds,
        )
    results.summary()
    return 0


if __name__ == "__main__":
    sys.exit(main())
