"""One training step (forward, loss, backward, SGD) beside torch in eager mode, in both of its layouts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import models, nn

from .harness import Case, Work

SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Job:
    """A model and its batch."""

    model: str
    batch: int
    size: int
    channels: int = 3
    classes: int = 10


JOBS = (
    Job("resnet18", 32, 32),
    Job("mini_xception", 32, 32),
    Job("resnet50", 8, 64),
    Job("unet", 2, 128, 1, 2),
    Job("inception_v1", 4, 224),
    Job("alexnet", 32, 64),
)


def cases(rivals: set[str], only: str = "") -> Iterator[Case]:
    """A step of each model on random images; the learning rate is small, so that values stay ordinary."""
    for job in JOBS:
        case = f"{job.model} {job.size}x{job.size} batch {job.batch}"
        if only not in case:  # compiling takes long
            continue
        rng = np.random.default_rng(0)
        x = rng.standard_normal((job.batch, job.size, job.size, job.channels), dtype=np.float32)
        dense = job.model == "unet"
        labels = rng.integers(0, job.classes, x.shape[:3] if dense else x.shape[0])
        contenders = {"medmpi": our_step(job, x, labels)}
        if "torch" in rivals:
            contenders |= torch_steps(job, x, labels)
        yield Case(case, contenders, extra={"group": job.model})


def our_step(job: Job, x: Any, labels: Any) -> Work:
    """The step as the trainer runs it, without its bookkeeping."""
    graph = models.build(job.model, classes=job.classes, channels=job.channels, image_size=job.size).fuse()
    parameters = nn.Parameters(graph, seed=0)
    optimizer, loss = nn.SGD(parameters, **SGD), nn.CrossEntropy()
    step = 0

    def work() -> None:
        nonlocal step
        parameters.zero_grad()
        (logits,), saved = graph.forward(x, context=nn.Context(train=True, seed=0, step=step))
        _, dlogits = loss(logits, labels)
        graph.backward((dlogits,), saved)
        optimizer.step()
        step += 1

    return work


def torch_model(job: Job) -> Any:
    """The twin of the model, from the tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
    import torch_models

    stem = "small" if job.size <= 64 else "imagenet"
    options = {"stem": stem} if job.model not in ("unet", "mini_xception") else {}
    return torch_models.build(job.model, classes=job.classes, channels=job.channels, **options)


def torch_steps(job: Job, x: Any, labels: Any, only: str = "") -> dict[str, Work]:
    """The same in torch, with its fused optimizer: eager in both layouts, and compiled where a compiler is found."""
    import torch

    steps: dict[str, Work] = {}
    sides = [("torch_nchw", torch.contiguous_format), ("torch_nhwc", torch.channels_last)]
    sides += [("torch_compile", torch.channels_last)] if only in ("", "torch_compile") else []
    for name, fmt in sides:
        if only not in ("", name):
            continue
        model = torch_model(job).to(memory_format=fmt).train()
        if name == "torch_compile":
            model = torch.compile(model)
        tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
        optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)

        def work(model: Any = model, tx: Any = tx, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(tx), torch.from_numpy(labels)).backward()
            optimizer.step()

        steps[name] = work
    return steps
