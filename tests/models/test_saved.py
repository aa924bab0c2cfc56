"""A checkpoint says what its model is, and comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medmpi import models, nn
from medmpi.nn import checkpoint
from medmpi.nn.checkpoint import CheckpointError

SPEC = models.ModelSpec(
    "resnet18", "classification", ("none", "läsion"), 1, (16, 16), (0.4,), (0.2,), {"stem": "small", "width": 4}
)


def written(folder, metadata):
    graph = SPEC.build().fuse()
    nn.Parameters(graph, seed=3)
    path = folder / "checkpoints" / "best.safetensors"
    path.parent.mkdir()
    checkpoint.save(path, checkpoint.state_dict(graph), metadata)
    return graph, path


@pytest.mark.parametrize("of", ["run", "checkpoints", "file"])
def test_a_model_comes_back(tmp_path, of):
    graph, path = written(tmp_path, SPEC.to_metadata())
    saved = models.load({"run": tmp_path, "checkpoints": path.parent, "file": path}[of])
    assert saved.spec == SPEC
    assert saved.path == path
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 1), np.float32)
    context = nn.Context(train=False)
    np.testing.assert_array_equal(
        saved.graph.forward(x, context=context)[0][0], graph.forward(x, context=context)[0][0]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {}, "have no medmpi.model"),
        (lambda m: {**m, "name": "resnet19"}, "unknown"),
        (lambda m: {**m, "std": [0.0]}, "std"),
        (lambda m: {**m, "classes": 3}, "cannot be read"),
        (lambda m: {**m, "classes": ["a", "b", "c"]}, "fc.weight has shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    changed = change(json.loads(SPEC.to_metadata()["medmpi.model"]))
    _, path = written(tmp_path, {"medmpi.model": json.dumps(changed)} if changed else {})
    with pytest.raises(CheckpointError, match=message) as error:
        models.load(tmp_path)
    assert str(path) in str(error.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoints/best\.safetensors"):
        models.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        models.load(tmp_path / "nothing")
