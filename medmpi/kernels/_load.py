"""Finds the compiled module and chooses how OpenMP threads wait, before the module is loaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Spinning threads starve the other ranks of a full machine; a short spin keeps back-to-back loops quick.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _installed_folder() -> Path | None:
    """The folder of the installed package's compiled module, for a source tree that shadows the installation."""
    import importlib.metadata  # slow to load, and seldom needed

    try:
        files = importlib.metadata.distribution("medmpi").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith("_core.") and file.suffix in (".so", ".pyd", ".dylib"):
            return Path(str(file.locate())).parent
    return None


if importlib.util.find_spec("medmpi.kernels._core") is None:
    import medmpi.kernels

    folder = _installed_folder()
    if folder is None:
        raise ImportError("medmpi: the compiled module medmpi.kernels._core is missing; run 'pip install -e .' first")
    medmpi.kernels.__path__.append(str(folder))

from . import _core  # noqa: E402

if _core.__version__ != __import__("medmpi").__version__:
    raise ImportError(
        f"medmpi: the source is version {__import__('medmpi').__version__}, the compiled module {_core.__version__}; "
        "install again with 'pip install -e .'"
    )
