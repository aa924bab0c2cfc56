"""Whole runs with --device cuda, on a real or an emulated device: the same weights as on the host, by any ranks."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import tiny

from medmpi import kernels
from medmpi.cli import main as cli
from medmpi.infer.predictor import Predictor
from medmpi.nn import checkpoint

needs_device = pytest.mark.skipif(not kernels.devices(), reason=f"no CUDA device: {kernels.missing_device()}")
FLAGS = ("--data=phantom:size=16,samples=12", "--batch-size=4", "--epochs=1", "--max-steps=2")


def weights(folder):
    return checkpoint.load(folder / "checkpoints" / "last.safetensors")[0]


def check_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=2e-3 * (np.abs(value).max() + 1e-3), rtol=0, err_msg=name)


@pytest.mark.skipif(bool(kernels.devices()), reason="this machine has a device")
def test_without_a_device_the_run_ends_with_the_reason(tmp_path, capfd):
    assert tiny.train("--device=cuda", "--out", tmp_path / "run") == 2
    assert f"--device cuda: {kernels.missing_device()}; use --device cpu" in capfd.readouterr().err


@needs_device
def test_a_run_on_the_device_is_that_on_the_host(tmp_path, capfd):
    for device in ("cpu", "cuda"):
        assert tiny.train(*FLAGS, f"--device={device}", "--out", tmp_path / device) == 0
    out = capfd.readouterr().out
    assert f"kernels: cuda in fp32 on {kernels.devices()[0]}" in out
    check_close(weights(tmp_path / "cuda"), weights(tmp_path / "cpu"))

    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), dtype=np.uint8)
    host, device = (Predictor(tmp_path / "cpu", tune=False, device=name).logits(pixels) for name in ("cpu", "cuda"))
    np.testing.assert_allclose(device, host, atol=1e-4 * np.abs(host).max())

    loss = []
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.json"
        assert cli(["evaluate", str(tmp_path / "cpu"), "--threads=1", f"--device={device}", "--out", str(file)]) == 0
        loss += [scores["loss"] for scores in json.loads(file.read_text())["results"].values()]
    assert loss[0] == pytest.approx(loss[1], rel=1e-4)

    # what a device saved goes on in host memory
    assert tiny.train(*FLAGS, "--max-steps=3", "--resume", "--out", tmp_path / "cuda") == 0
    assert "resumed at epoch 1 after 2 of 3 steps" in capfd.readouterr().out


@needs_device
def test_a_run_in_graphs_is_that_kernel_by_kernel(tmp_path, capfd):
    flags = ("--data=phantom:size=16,samples=12", "--batch-size=2", "--epochs=1", "--max-steps=3", "--device=cuda")
    for name, flag in (("graphs", "--cuda-graph"), ("kernels", "--no-cuda-graph")):
        assert tiny.train(*flags, flag, "--out", tmp_path / name) == 0
    out = capfd.readouterr().out
    assert ", steps in CUDA graphs" in out
    assert ", steps kernel by kernel (--no-cuda-graph)" in out
    tiny.assert_same(tiny.state(tmp_path / "graphs"), tiny.state(tmp_path / "kernels"))


@needs_device
def test_two_ranks_sum_the_gradients_of_their_devices(tmp_path):
    for ranks in (1, 2):
        command = tiny.command(ranks, *FLAGS, "--device=cuda", "--out", tmp_path / str(ranks))
        done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    check_close(weights(tmp_path / "2"), weights(tmp_path / "1"))
