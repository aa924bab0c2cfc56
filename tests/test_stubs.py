"""The compiled module's stub says what the module says of itself. ``python tests/test_stubs.py`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from medmpi import kernels
from medmpi.kernels import _core

STUB = Path(__file__).resolve().parents[1] / "medmpi" / "kernels" / "_core.pyi"
HEAD = """# Written by tests/test_stubs.py from the module's own signatures.
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str
"""
#: Python's name of each type in pybind11's signatures.
TYPES = (
    (r"typing\.Annotated\[collections\.abc\.Sequence\[(.*?)\], \"FixedSize\(\d+\)\"\]", r"Sequence[\1]"),
    (r"collections\.abc\.Sequence", "Sequence"),
    (r"(typing\.)?SupportsInt \| (typing\.)?SupportsIndex", "int"),
    (r"(typing\.)?SupportsFloat \| (typing\.)?SupportsIndex", "float"),
    (r"medmpi\.kernels\._core\.", ""),
    (r"typing_extensions\.Buffer", "Any"),
    (r"\bobject\b", "Any"),
    (r"typing\.Any", "Any"),
    (r"numpy\.ndarray", "NDArray[Any]"),
    (r"numpy\.dtype(\[Any\])?", "np.dtype[Any]"),
    (r"(?<=\w: )tuple(?=[,)])", "tuple[Any, ...]"),
    (r"^(lines\(.*\)) -> list$", r"\1 -> list[dict[str, Any]]"),
    (r"\bcache: (?:[\w.]+\.)?WeightCache", "cache: WeightCache | None"),  # a pointer: may be None
    (r"\bbeside: CudaGraph\b", "beside: CudaGraph | None"),
    (r"\*args\)", "*args: object)"),
    (r"-> list$", "-> list[str]"),
    (r"-> dict$", "-> dict[str, int]"),
    (r"-> tuple$", "-> tuple[Any, ...]"),
)

SPECIAL = ("__init__", "__enter__", "__exit__", "__len__", "__getitem__", "__setitem__")


def signature_of(member: object) -> str:
    """A function's or method's signature in Python's names."""
    signature = (getattr(member, "__doc__", None) or "").splitlines()[0]
    for pattern, replacement in TYPES:
        signature = re.sub(pattern, replacement, signature)
    return signature


def render() -> str:
    """The stub's text."""
    lines = [HEAD]
    for name, member in sorted(vars(_core).items()):
        if not callable(member) or name.startswith("__"):
            continue
        if not isinstance(member, type):
            lines.append(f"def {signature_of(member)}: ...")
            continue
        lines.append(f"class {name}:")
        for method in sorted(m for m in vars(member) if m in SPECIAL or not m.startswith("_")):
            if method == "__init__" and not signature_of(getattr(member, method)).startswith("__init__("):
                continue  # no constructor
            if isinstance(vars(member)[method], property):
                result = signature_of(vars(member)[method].fget).rpartition(" -> ")[2]
                lines += ["    @property", f"    def {method}(self) -> {result}: ..."]
                continue
            if isinstance(vars(member)[method], staticmethod):
                lines.append("    @staticmethod")
            signature = re.sub(r"\(self: [\w.:]+", "(self", signature_of(getattr(member, method)))
            lines.append(f"    def {signature}: ...")
    return "\n".join(lines) + "\n"


def test_stub_is_up_to_date():
    assert STUB.read_text() == render(), "run: python tests/test_stubs.py"


def test_every_argument_has_a_name():
    assert "arg0" not in render()


def test_every_public_function_is_documented_once():
    missing = [name for name in kernels.__all__ if not (getattr(kernels, name).__doc__ or "").strip()]
    assert missing == []
    assert len(set(kernels.__all__)) == len(kernels.__all__)


if __name__ == "__main__":
    STUB.write_text(render())
