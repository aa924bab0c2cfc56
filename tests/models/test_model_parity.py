"""Every model against torch: checkpoints both ways, logits, gradients, and ten steps of SGD with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import parity
import pytest
import torch
import torch_models
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from medmpi import models, nn

# A correct implementation is one more sample of the spread that rounding causes (see parity.py). Over a whole network
# the norms average, so that it stays near the largest of the samples; a single tensor of few values may be unlucky.
OVERALL, TENSOR = 3.0, 10.0


@dataclass(frozen=True)
class Case:
    """A network small enough to train in seconds, with images that no stride divides."""

    name: str
    size: tuple[int, int]
    n: int = 6
    channels: int = 3
    stem: str = "auto"
    width: int | None = None
    kernel5: bool | None = None
    lr: float = 0.02
    jitters: int = 2
    steps: int = 10

    def __str__(self) -> str:
        return "-".join(str(v) for v in (self.name, self.stem, f"{self.size[0]}x{self.size[1]}"))

    @property
    def dropout(self) -> float | None:
        """Off where the model has it: the two sides draw different random numbers."""
        return 0.0 if self.name in ("alexnet", "inception_v1") else None

    def torch_model(self) -> torch.nn.Module:
        stem = ("small" if max(self.size) <= 64 else "imagenet") if self.stem == "auto" else self.stem
        torch.manual_seed(1)
        model = torch_models.build(
            self.name, classes=5, channels=self.channels, stem=stem, dropout=self.dropout, width=self.width,
            kernel5=bool(self.kernel5),
        )  # fmt: skip
        parity.set_weights(model)
        return model

    def graph(self) -> nn.Graph:
        return models.build(
            self.name, classes=5, channels=self.channels, image_size=self.size, stem=self.stem, dropout=self.dropout,
            width=self.width, kernel5=self.kernel5,
        )  # fmt: skip


CASES = [
    Case("resnet18", (18, 21), width=16),
    Case("resnet18", (45, 50), stem="imagenet", width=16, channels=1),
    Case("resnet34", (17, 20), width=8, lr=0.005),
    Case("resnet50", (18, 17), width=8, lr=0.002),
    Case("alexnet", (30, 27), n=4, channels=1, jitters=1),
    Case("inception_v1", (18, 21), lr=0.005, n=4, jitters=1),
    Case("inception_v1", (65, 50), stem="imagenet", kernel5=True, lr=0.002, jitters=1, steps=3),
    Case("mini_xception", (13, 16), width=32),
    Case("unet", (37, 48), n=2, width=8, channels=1),
]


def distance(a: parity.Arrays, b: parity.Arrays) -> float:
    return float(np.sqrt(sum(np.sum((a[k] - b[k]) ** 2) for k in b)))


def norm(a: parity.Arrays) -> float:
    return float(np.sqrt(sum(np.sum(v**2) for v in a.values())))


def check(what: str, ours: parity.Arrays, truth: parity.Arrays, samples: list[parity.Arrays]) -> float:
    """Asserts that ours is as near to the truth as the samples are; returns our relative error over all arrays."""
    assert ours.keys() == truth.keys()
    for name, t in truth.items():
        assert ours[name].shape == t.shape, name
        ours_one, truth_one = {name: ours[name]}, {name: t}
        bound = TENSOR * max(distance({name: s[name]}, truth_one) for s in samples) + 8 * parity.EPS * norm(truth_one)
        assert distance(ours_one, truth_one) <= bound, f"{what}: {name}"
    bound = OVERALL * max(distance(s, truth) for s in samples) + 4 * parity.EPS * norm(truth)
    error = distance(ours, truth)
    assert error <= bound, what
    return error / norm(truth)


def one(name: str, value: NDArray[np.float64] | list[float]) -> parity.Arrays:
    return {name: np.asarray(value, np.float64)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_follows_torch(case, tmp_path, record_property):
    model, graph = case.torch_model(), case.graph()
    parameters = nn.Parameters(graph, seed=0)
    save_file(model.state_dict(), tmp_path / "torch.safetensors")
    nn.checkpoint.load_state_dict(graph, nn.checkpoint.load(tmp_path / "torch.safetensors")[0])

    data = parity.batches(case.steps, case.n, case.size, case.channels, 5, dense=case.name == "unet")
    ours, switches = parity.run_here(graph, parameters, data, case.lr)
    truth = parity.run_torch(model, data, case.lr, torch.float64, switches)
    samples = [
        parity.run_torch(model, data, case.lr, torch.float32, switches, jitter)
        for jitter in (None, *range(case.jitters))
    ]

    assert truth.off < 1e-3
    assert sum(truth.losses[-2:]) < sum(truth.losses[:2])  # it learns, so that the comparison means something
    errors = {
        "switches": truth.off,
        "logits": check("logits", one("y", ours.logits), one("y", truth.logits), [one("y", s.logits) for s in samples]),
        "gradients": check("gradients", ours.gradients, truth.gradients, [s.gradients for s in samples]),
        "losses": check("losses", one("", ours.losses), one("", truth.losses), [one("", s.losses) for s in samples]),
        "state": check("state", ours.state, truth.state, [s.state for s in samples]),
        "evaluated": check(
            "evaluated", one("y", ours.evaluated), one("y", truth.evaluated), [one("y", s.evaluated) for s in samples]
        ),
    }
    for what, error in errors.items():
        record_property(what, error)
        print(f"{case} {what} {error:.1e}")

    nn.checkpoint.save(tmp_path / "ours.safetensors", nn.checkpoint.state_dict(graph))
    model.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    with torch.no_grad():
        y = model.eval()(torch.from_numpy(data[0].images).permute(0, 3, 1, 2))
    y = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
    np.testing.assert_allclose(y.numpy(), ours.evaluated, rtol=0, atol=1e-4 * float(np.abs(ours.evaluated).max()))
