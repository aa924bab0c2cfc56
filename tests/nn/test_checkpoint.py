"""Checkpoints: torch reads ours and we read torch's; damage is noticed; a failed save leaves the old file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from twin import close, images, network

from medmpi import nn
from medmpi.nn import checkpoint
from medmpi.nn.checkpoint import CheckpointError


def _trained(seed: int = 1) -> nn.Graph:
    """A network whose buffers have moved too."""
    graph = network()
    nn.Parameters(graph, seed=seed)
    graph.forward(images(np.random.default_rng(seed), 3, 8, 8, 3))
    return graph


def _torch_network() -> Any:
    """The modules of ``network()`` in torch; only their names and shapes matter."""
    torch = pytest.importorskip("torch", reason="torch reads and writes the other side's files")

    class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            t = torch.nn
            self.conv1, self.bn1 = t.Conv2d(3, 8, 3, padding=1, bias=False), t.BatchNorm2d(8)
            self.conv2, self.bn2 = t.Conv2d(8, 8, 3, padding=1), t.BatchNorm2d(8)
            self.conv3, self.bn3 = t.Conv2d(8, 16, 3, 2, 1, bias=False), t.BatchNorm2d(16)
            self.down = t.Sequential(t.Conv2d(8, 16, 1, 2, bias=False), t.BatchNorm2d(16))
            self.branch1, self.branch2 = t.Conv2d(16, 4, 1), t.MaxPool2d(3, 1, 1)
            self.bn4, self.conv5, self.bn5 = t.BatchNorm2d(20), t.Conv2d(20, 20, 3, 1, 1, groups=20), t.BatchNorm2d(20)
            self.fc1, self.fc2 = t.Linear(80, 10), t.Linear(10, 3)

        def forward(self, x: Any) -> Any:
            a = self.bn1(self.conv1(x)).relu()
            a = (self.bn2(self.conv2(a)) + a).relu()
            a = (self.bn3(self.conv3(a)) + self.down(a)).relu()
            x = self.bn4(torch.cat([self.branch1(a).relu(), self.branch2(a)], 1))
            x = torch.nn.functional.avg_pool2d(x + self.bn5(self.conv5(x)), 2)
            return self.fc2(self.fc1(x.flatten(1)).relu())

    return Twin()


def test_torch_loads_ours_and_computes_the_same(tmp_path: Path) -> None:
    twin = _torch_network()
    torch_files = pytest.importorskip("safetensors.torch", reason="torch reads and writes the other side's files")
    graph = _trained()
    checkpoint.save(tmp_path / "a.safetensors", checkpoint.state_dict(graph), {"epoch": "3"})
    state = torch_files.load_file(tmp_path / "a.safetensors")
    assert list(twin.state_dict()) == list(checkpoint.state_dict(graph))
    twin.load_state_dict(state, strict=True)
    x = images(np.random.default_rng(0), 2, 8, 8, 3)
    expected = twin.eval()(torch_files.torch.from_numpy(x).permute(0, 3, 1, 2))
    close(graph.forward(x, context=nn.Context(train=False))[0][0], expected.detach().numpy())


def test_ours_loads_torchs_and_computes_the_same(tmp_path: Path) -> None:
    twin = _torch_network()
    torch_files = pytest.importorskip("safetensors.torch", reason="torch reads and writes the other side's files")
    x = images(np.random.default_rng(0), 2, 8, 8, 3)
    wide = torch_files.torch.from_numpy(x).permute(0, 3, 1, 2)
    twin(wide)
    torch_files.save_file(twin.state_dict(), tmp_path / "b.safetensors")
    tensors, metadata = checkpoint.load(tmp_path / "b.safetensors")
    assert metadata == {}
    for graph in (network(), network().fuse()):
        nn.Parameters(graph)
        assert checkpoint.load_state_dict(graph, tensors) == ([], [])
        expected = twin.eval()(wide).detach().numpy()
        close(graph.forward(x, context=nn.Context(train=False))[0][0], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_load(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    weights = {"a": torch.randn(3, 5), "b": torch.tensor([1e-3, float("inf"), -2.5]), "empty": torch.zeros(0, 2)}
    halves = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
    save_file({**halves, "count": torch.tensor(3)}, tmp_path / "x.safetensors")
    found, _ = checkpoint.load(tmp_path / "x.safetensors")
    assert found["count"] == 3
    for name, value in halves.items():
        assert np.array_equal(found[name].astype(np.float32), value.float().numpy())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    graph, other = _trained(1), _trained(2)
    state = checkpoint.state_dict(graph)
    path = tmp_path / "c.safetensors"
    extra = {"scalar": np.array(7, np.int64), "bytes": np.arange(5, dtype=np.uint8), "nothing": np.zeros((0, 3))}
    checkpoint.save(path, {**state, **extra}, {"epoch": "3", "text": "naïve\n"})
    tensors, metadata = checkpoint.load(str(path))
    assert metadata == {"format": "pt", "epoch": "3", "text": "naïve\n"}
    assert tensors.keys() == {*state, *extra}
    for name, value in {**state, **extra}.items():
        assert tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(tensors[name], value)
    missing, unexpected = checkpoint.load_state_dict(other, tensors, strict=False)
    assert (missing, sorted(unexpected)) == ([], ["bytes", "nothing", "scalar"])
    for name, value in checkpoint.state_dict(other).items():
        np.testing.assert_array_equal(value, state[name])
    other["fc1"].p["weight"][...] = 0
    assert state["fc1.weight"].any()  # copies
    if hasattr(os, "umask"):
        mask = os.umask(0)
        os.umask(mask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_states_that_do_not_fit_change_nothing() -> None:
    graph = _trained()
    before = checkpoint.state_dict(graph)
    zeros = {name: np.zeros_like(value) for name, value in before.items()}
    lacking = {name: value for name, value in zeros.items() if not name.startswith("fc1")}
    wrong: list[tuple[dict[str, Any], str]] = [
        (lacking, r"lacks fc1\.weight, fc1\.bias$"),
        ({**zeros, "aux.weight": np.zeros(3)}, "has aux.weight that the model has not"),
        ({**zeros, "fc2.weight": np.zeros((10, 3))}, r"fc2\.weight has shape \(10, 3\), expected \(3, 10\)"),
        ({**zeros, "fc2.bias": np.zeros(3, np.int64)}, r"fc2\.bias has dtype int64, expected float32"),
        ({}, r"lacks conv1.weight, bn1.weight, .* and 32 more"),
    ]
    for state, text in wrong:
        with pytest.raises(CheckpointError, match=text):
            checkpoint.load_state_dict(graph, state)
    for name, value in checkpoint.state_dict(graph).items():
        np.testing.assert_array_equal(value, before[name])


def test_old_files_without_counters_load() -> None:
    graph = _trained()
    state = {name: value for name, value in checkpoint.state_dict(graph).items() if "tracked" not in name}
    assert checkpoint.load_state_dict(graph, state) == ([], [])


def test_a_stage_takes_its_part_of_the_model() -> None:
    graph = _trained(1)
    state = checkpoint.state_dict(graph)
    parts: dict[str, Any] = {}
    for stage in network().split([4, 9]):
        nn.Parameters(stage, seed=5)
        missing, unexpected = checkpoint.load_state_dict(stage, state, strict=False)
        assert not missing
        assert unexpected
        parts.update(checkpoint.state_dict(stage))
    assert list(parts) == list(state)
    for name, value in parts.items():
        np.testing.assert_array_equal(value, state[name])


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    checkpoint.save(path, checkpoint.state_dict(_trained()))
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"d\.safetensors has {size} bytes, expected a whole"):
            checkpoint.load(path)
    for at in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    path.write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(CheckpointError, match="expected a whole safetensors file"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match=r"nowhere.* is missing"):
        checkpoint.load(tmp_path / "nowhere")


def test_files_made_elsewhere_have_no_checksum(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.arange(3.0)}, tmp_path / "e.safetensors")
    tensors, metadata = checkpoint.load(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(tensors["a"], np.arange(3.0))
    assert metadata == {}


@pytest.mark.parametrize("function", ["os.replace", "os.fsync", "write"])
def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "f.safetensors"
    checkpoint.save(path, {"a": np.ones(4)})
    before = path.read_bytes()

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((checkpoint, "_bytes") if function == "write" else (os, function[3:])), fail)
    if function == "write":
        # fails after the header is written; the checksum before it still needs the bytes
        monkeypatch.setattr(checkpoint, "_checksum", lambda tensors: "0")
    with pytest.raises(CheckpointError, match=r"f\.safetensors cannot be written: .*No space left"):
        checkpoint.save(path, {"a": np.zeros(400)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.safetensors"
    checkpoint.save(path, {"a": np.ones(4)})

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"a": np.zeros(400)})
    monkeypatch.undo()
    np.testing.assert_array_equal(checkpoint.load(path)[0]["a"], np.ones(4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.safetensors"]


def test_folders_that_do_not_exist_and_types_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere/a cannot be written"):
        checkpoint.save(tmp_path / "nowhere" / "a", {"a": np.ones(4)})
    with pytest.raises(TypeError, match="z has dtype complex128"):
        checkpoint.save(tmp_path / "a", {"z": np.ones(4, complex)})
    assert not list(tmp_path.iterdir())
