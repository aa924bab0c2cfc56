"""A trained model as an ONNX file, and the proof that it computes the same (Beyond: torch-free export)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

import medmpi
from medmpi import nn
from medmpi.files import write_whole
from medmpi.models import ModelSpec
from medmpi.nn.layer import Shape

from .nodes import At, Writer, write_layer

OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes of the last years read
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4


def to_onnx(graph: nn.Graph, spec: ModelSpec) -> onnx.ModelProto:
    """The graph, folded or not, as an ONNX model checked by onnx itself.

    Input ``images``: float32 (N, channels, H, W), any N, prepared as the metadata say: ``(pixels / 255 - mean) / std``.
    Output ``logits``: (N, classes), for segmentation (N, classes, H, W). Metadata: ``mean``, ``std``, ``classes``,
    ``image_size`` (JSON lists), ``task``, ``model``, ``preprocessing``, ``producer``.

    NotExportable: a layer without a form in ONNX.
    """
    h, w = spec.image_size
    shapes = graph.shapes((1, h, w, spec.channels))
    names = [INPUT]
    writer = Writer()
    for i, node in enumerate(graph.nodes):
        at = At(node.name, [names[v] for v in node.inputs], [shapes[v] for v in node.inputs], shapes[1 + i])
        names.append(write_layer(writer, node.layer, at))
    (result,) = graph.outputs
    writer.node("Identity", [names[result]], OUTPUT)
    made = helper.make_graph(
        writer.nodes,
        spec.name,
        [_value(INPUT, shapes[0])],
        [_value(OUTPUT, shapes[result])],
        initializer=writer.constants,
    )
    model = helper.make_model(
        made, producer_name="medmpi", producer_version=medmpi.__version__, ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip
    helper.set_model_props(
        model,
        {
            "model": spec.name,
            "task": spec.task,
            "classes": json.dumps(list(spec.classes), ensure_ascii=False),
            "mean": json.dumps(list(spec.mean)),
            "std": json.dumps(list(spec.std)),
            "image_size": json.dumps(list(spec.image_size)),
            "preprocessing": "images = (pixels / 255 - mean) / std per channel, layout (N, C, H, W)",
            "producer": f"medmpi {medmpi.__version__}",
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, shape: Shape) -> onnx.ValueInfoProto:
    """A float32 input or output with a free batch size; ours is (n, h, w, c)."""
    rest = [shape[3], shape[1], shape[2]] if len(shape) == 4 else list(shape[1:])
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *rest])


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes the file in one step; OSError where it cannot be, and no half file is left."""
    write_whole(path, model.SerializeToString())


def difference(model: onnx.ModelProto, graph: nn.Graph, spec: ModelSpec, batches: tuple[int, ...] = (1, 3)) -> float:
    """The largest difference between onnxruntime's logits and the graph's own, on random images of these batch sizes.

    Relative to the largest logit where that is above 1. ImportError without onnxruntime.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for n in batches:
        x = rng.standard_normal((n, *spec.image_size, spec.channels), np.float32)
        (ours,), _ = graph.forward(x, context=nn.Context(train=False))
        (theirs,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
        found: NDArray[np.float32] = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
        if found.shape != ours.shape:
            raise ValueError(f"onnxruntime gives shape {found.shape}, expected {ours.shape}")
        error = np.abs(found.astype(np.float64) - ours).max() / max(1.0, float(np.abs(ours).max()))
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst
