"""Every network as ONNX: onnxruntime computes what medmpi computes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from medmpi import cli, models, nn
from medmpi.nn import checkpoint

onnx = pytest.importorskip("onnx", reason="needs the extra medmpi[export]")
ort = pytest.importorskip("onnxruntime", reason="needs the extra medmpi[export]")

from medmpi.export import model as export  # noqa: E402
from medmpi.export.nodes import NotExportable  # noqa: E402

CASES = [
    ("resnet18", (24, 20), {"stem": "small", "width": 8}),
    ("resnet34", (32, 32), {"stem": "imagenet", "width": 4}),
    ("resnet50", (33, 35), {"stem": "imagenet", "width": 4}),
    ("alexnet", (96, 80), {"stem": "imagenet"}),
    ("mini_xception", (17, 16), {"width": 8}),
    ("inception_v1", (31, 34), {"stem": "imagenet"}),
    ("unet", (38, 49), {"width": 4}),
]


def trained(name, size, options, channels=1):
    """A network with parameters and running statistics that are not those of the start."""
    task = "segmentation" if name == "unet" else "classification"
    spec = models.ModelSpec(name, task, ("a", "b", "ç"), channels, size, (0.3,) * channels, (0.2,) * channels, options)
    graph = spec.build().fuse()
    nn.Parameters(graph, seed=1)
    rng = np.random.default_rng(2)
    for node in graph.nodes:
        if isinstance(node.layer, nn.BatchNorm2d):
            k = node.layer.channels
            node.layer.b["running_mean"][...] = 0.1 * rng.standard_normal(k)
            node.layer.b["running_var"][...] = rng.uniform(0.5, 2, k)
            node.layer.p["weight"][...] = rng.uniform(0.5, 1.5, k)
            node.layer.p["bias"][...] = 0.1 * rng.standard_normal(k)
    return spec, graph


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "plain"])
@pytest.mark.parametrize(("name", "size", "options"), CASES, ids=[f"{c[0]}-{c[1][0]}" for c in CASES])
def test_agrees_with_onnxruntime(name, size, options, folded):
    if name == "alexnet" and not folded:
        pytest.skip("has no batch normalisation: folding changes little, and its matrices are large")
    spec, graph = trained(name, size, options, channels=3 if name == "resnet50" else 1)
    graph = graph.fold() if folded else graph
    made = export.to_onnx(graph, spec)
    assert export.difference(made, graph, spec, batches=(1, 2)) < 1e-4
    kinds = {node.op_type for node in made.graph.node}
    assert ("BatchNormalization" in kinds) == (not folded)


def test_a_difference_is_noticed():
    spec, graph = trained("resnet18", (16, 16), {"stem": "small", "width": 4})
    made = export.to_onnx(graph, spec)
    graph["fc"].p["bias"][0] += 0.01
    assert export.difference(made, graph, spec, batches=(1,)) > 1e-4


def test_upsampling_and_average_pooling():
    spec = models.ModelSpec("x", "segmentation", ("a", "b"), 2, (9, 6), (0.0, 0.0), (1.0, 1.0))
    graph = nn.Graph()
    graph.add("pool", nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False))
    graph.add("bilinear", nn.Upsample(2))
    graph.add("nearest", nn.Upsample(3, "nearest"))
    graph.add("sum", nn.Add(), 3, 3)
    nn.Parameters(graph)
    assert export.difference(export.to_onnx(graph, spec), graph, spec) < 1e-5
    graph.add("own", type("Own", (nn.ReLU,), {})())
    with pytest.raises(NotExportable, match="own: Own"):
        export.to_onnx(graph, spec)


def test_command(tmp_path, capsys):
    spec, graph = trained("resnet18", (16, 16), {"stem": "small", "width": 4})
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    checkpoint.save(folder / "best.safetensors", checkpoint.state_dict(graph), spec.to_metadata())
    target = tmp_path / "model.onnx"
    assert cli.main(["export", str(tmp_path / "run"), "--to", str(target)]) == 0
    assert "agree to" in capsys.readouterr().out
    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == ["a", "b", "ç"]
    assert json.loads(found["mean"]) == [0.3]
    assert json.loads(found["std"]) == [0.2]
    assert session.get_inputs()[0].shape == ["batch", 1, 16, 16]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model.onnx"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing", "--to", "x.onnx"], 1, "nothing does not exist"),
        (["nothing", "--to", "x.pt"], 2, r"expected a file named \*.onnx"),
        (["nothing", "--to", "nowhere/x.onnx"], 2, "nowhere does not exist"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *words]) == code
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
