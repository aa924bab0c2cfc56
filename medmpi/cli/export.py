"""``medmpi export RUN --to FILE.onnx``: a trained model for ONNX runtimes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Writes the file and checks it; 0 done, 1 where that fails, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="medmpi export",
        description="Write a trained model as ONNX, checked with onnxruntime against medmpi's own inference.",
        epilog="Names of classes and the preprocessing (mean, std) are in the file's metadata. The batch size is free.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or a .safetensors file that a run has written")
    parser.add_argument("--to", required=True, metavar="FILE.onnx", help="file to write")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of a run folder (best)")
    parser.add_argument("--no-fold", action="store_true", help="keep batch normalisation as nodes of their own")
    parser.add_argument("--no-check", action="store_true", help="do not compare with onnxruntime")
    given = parser.parse_args(argv)
    target = Path(given.to).expanduser()
    if target.suffix != ".onnx":
        return _fail(f"--to is {target}, expected a file named *.onnx", 2)
    if not target.parent.is_dir():
        return _fail(f"--to is {target}, but the folder {target.parent} does not exist", 2)
    try:
        from medmpi.export import model as export
    except ImportError as error:
        return _fail(f"{error.name} is not installed; pip install 'medmpi[export]'")
    from medmpi import models
    from medmpi.nn.checkpoint import CheckpointError

    try:
        saved = models.load(given.run, given.checkpoint)
        spec = saved.spec
        graph = saved.graph if given.no_fold else saved.graph.fold()
        model = export.to_onnx(graph, spec)
        checked = "not checked (--no-check)"
        if not given.no_check:
            try:
                worst = export.difference(model, graph, spec)
            except ImportError:
                checked = "not checked: onnxruntime is not installed (pip install 'medmpi[export]')"
            else:
                if not worst <= export.TOLERANCE:
                    limit = export.TOLERANCE
                    return _fail(f"onnxruntime's logits differ by {worst:.1e}, expected {limit:g}; nothing written")
                checked = f"onnxruntime's logits agree to {worst:.1e}"
        export.save(model, target)
    except (CheckpointError, ValueError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or target}: {error.strerror or error}")
    h, w = spec.image_size
    print(f"{target}: {spec.name}, {len(spec.classes)} classes, input (N, {spec.channels}, {h}, {w}); {checked}")
    return 0


def _fail(message: str, code: int = 1) -> int:
    print(f"medmpi: error: {message}", file=sys.stderr)
    return code
