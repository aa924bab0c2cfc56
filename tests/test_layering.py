"""The layers of the package: a lower one never imports a higher one, and some things are imported nowhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medmpi"

#: Each layer and the medmpi packages that it may import.
ALLOWED = {
    "kernels": set(),
    "nn": {"kernels"},
    "models": {"kernels", "nn"},
    "data": {"kernels"},
    "parallel": {"kernels"},
    "train": {"kernels", "nn", "models", "data", "parallel", "evaluation"},
    "evaluation": set(),
    "export": {"kernels", "nn", "models"},
    "prepare": {"kernels", "data", "parallel", "train"},
    "infer": {"kernels", "nn", "models", "data", "parallel", "train"},
    "slide": {"kernels", "nn", "models", "data", "parallel"},
    "doctor": {"kernels", "parallel"},
    "cli": {
        "kernels", "nn", "models", "data", "parallel", "train", "export", "prepare", "infer", "slide", "doctor",
        "evaluation",
    },
}  # fmt: skip
FRAMEWORKS = {"torch", "tensorflow", "jax", "keras"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, at any depth of its code."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            names |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
    return names


def test_every_package_has_its_layer():
    found = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert found == set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_lower_layers(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ALLOWED.get(layer, set()) | {layer}
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in FRAMEWORKS, f"{path} imports {name}"
        if parts[0] == "mpi4py":
            assert layer == "parallel", f"{path} imports mpi4py; only medmpi/parallel may"
        if parts[0] == "medmpi" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            assert parts[1] in allowed, f"{path} imports {name}; {layer} may import {sorted(allowed)}"


def test_mpi4py_is_imported_lazily():
    for path in modules():
        for node in ast.parse(path.read_text()).body:  # the module's own level only
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "mpi4py" for n in names), f"{path} imports mpi4py when it is loaded"


def test_nothing_unsafe_is_called():
    """No pickle, eval, exec or archive extraction: input files are never code."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                unsafe = name in ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads", "pickle.Unpickler")
                assert not unsafe, f"{path}:{node.lineno} calls {name}"
                assert not name.endswith(".extractall"), f"{path}:{node.lineno} calls {name}"
                for keyword in node.keywords:
                    allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    assert keyword.arg != "allow_pickle" or allowed, f"{path}:{node.lineno} allows pickle"


def test_lower_layers_work_without_mpi(tmp_path):
    """kernels, nn, models and data load where mpi4py cannot be imported."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no MPI here')")
    code = "import medmpi.kernels, medmpi.nn, medmpi.models, medmpi.data, medmpi.parallel"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_kernels_of_each_instruction_set_export_one_table():
    """Code compiled for AVX-512 must never be the copy that the linker keeps for a machine without it."""
    objects = sorted(ROOT.glob("build/**/cpu_*.dir/**/*.o"))
    if not objects:
        pytest.skip("no object files: the package was not built in this tree")
    for path in objects:
        isa = next(part for part in path.parts if part.startswith("cpu_")).removeprefix("cpu_").removesuffix(".dir")
        symbols = subprocess.run(["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        for line in symbols.stdout.splitlines():
            kind, name = line[17:18], line[19:]
            assert kind not in "WVu" or "DW.ref" in name, f"{path.name} of {isa} exports the inline function {name}"
            if kind in "TDR":
                assert name.startswith(f"medmpi::{isa}::"), f"{path.name} of {isa} exports {name}"
