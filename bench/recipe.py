"""``python -m bench.recipe --seeds 0,1,2 [training flags]``: medmpi's trainer beside the same recipe in torch.

For each seed ``mpirun -n RANKS python -m medmpi.train`` runs with the flags given; then torch trains the same network
from the same weights on the same batches (medmpi's loader and augmentation feed both) with the same optimizer,
schedule and choice of the best epoch. Prints and writes the test scores of both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import parallel
from medmpi.data import Loader, epoch_order, global_batches
from medmpi.nn import checkpoint
from medmpi.train import metrics
from medmpi.train.config import parse
from medmpi.train.job import Job, build_job
from medmpi.train.log import finite
from medmpi.train.state import Position

from .machine import describe

SCORES = ("accuracy", "auc", "f1", "dice")
"""``dice``: the mean of the pixels' Dice over the classes but the first; NaN for classifiers, as ``auc`` for masks."""


def main() -> int:
    """Train, compare, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.recipe", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas")
    parser.add_argument("--result", type=Path, default=None, help="append a JSON line per seed to this file")
    parser.add_argument("--no-torch", action="store_true", help="medmpi alone")
    known, flags = parser.parse_known_args()
    found: dict[str, list[float]] = {}
    for seed in map(int, known.seeds.split(",")):
        words = [*flags, f"--seed={seed}"]
        line: dict[str, Any] = {"family": "recipe", "flags": flags, "seed": seed, "ranks": known.ranks}
        sides = {"medmpi": lambda w=words: ours(w, known.ranks)}
        if not known.no_torch:
            sides["torch"] = lambda w=words: theirs(w, threads=known.ranks)
        for name, train in sides.items():
            line[name] = train()
            for score in SCORES:
                found.setdefault(f"{name} {score}", []).append(line[name][score])
            print(f"seed {seed} {name:6} " + " ".join(f"{k} {v:.4f}" for k, v in line[name].items() if k != "losses"))
            print("  training losses " + " ".join(f"{v:.4f}" for v in line[name]["losses"]), flush=True)
        if known.result is not None:
            line["machine"] = describe()
            with known.result.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line)) + "\n")
    for name in sorted(found):
        print(f"mean {name} {statistics.mean(found[name]):.4f}")
    return 0


def ours(words: list[str], ranks: int) -> dict[str, Any]:
    """Test scores of a run of the trainer under mpirun, its losses and seconds."""
    mpirun = Path(sys.executable).with_name("mpirun")
    launcher = str(mpirun) if mpirun.exists() else shutil.which("mpirun") or "mpirun"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [launcher, "-n", str(ranks), sys.executable, "-m", "medmpi.train", *words]
        start = time.perf_counter()
        subprocess.run([*command, f"--out={out}", "--no-report", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        test = json.loads((out / "test.json").read_text())
        rows = (out / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    return {**_scores(test), "epoch": test["epoch"], "seconds": seconds, "losses": losses}


def theirs(words: list[str], threads: int) -> dict[str, Any]:
    """The same recipe in torch, channels_last, on one process."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
    import torch_models

    torch.set_num_threads(threads)
    job = build_job(parse(words), parallel.start())
    options = job.options
    if job.criterion.weight is not None or options.focal_gamma or options.clip_norm is not None:
        raise SystemExit("bench.recipe: torch's side knows neither class weights nor focal loss nor clipping")
    auto = "small" if max(job.dataset.image_size) <= 64 else "imagenet"
    model = torch_models.build(
        options.model, classes=len(job.dataset.classes), channels=job.dataset.channels, width=options.width,
        dropout=options.dropout, stem=auto if options.stem == "auto" else options.stem,
    )  # fmt: skip
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in checkpoint.state_dict(job.graph).items()})
    model = model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(torch, model, job)
    position, best, losses = Position(), {}, []
    start = time.perf_counter()
    for epoch in range(options.epochs):
        split = job.dataset.splits["train"]
        batches = global_batches(epoch_order(len(split), options.seed, epoch), options.batch_size)
        model.train()
        total = 0.0
        with Loader(split, batches, transform=job.transform(epoch), threads=1) as loader:
            for step, batch in enumerate(loader):
                for group in optimizer.param_groups:
                    group["lr"] = job.rate(epoch, step)
                optimizer.zero_grad(set_to_none=True)
                loss = _loss(torch, model(_images(torch, batch)), torch.from_numpy(batch.labels).long(), job)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch.labels)
        losses.append(total / len(split))
        scores = _evaluate(torch, model, job, "val")
        if position.is_better(scores.f1, scores.loss):
            position.best_score, position.best_loss, position.best_epoch = scores.f1, scores.loss, epoch + 1
            best = {name: value.clone() for name, value in model.state_dict().items()}
        job.rate.observe(scores.loss)
    seconds = time.perf_counter() - start
    model.load_state_dict(best)
    test = _evaluate(torch, model, job, "test")
    return {**_scores(asdict(test)), "epoch": position.best_epoch, "seconds": seconds, "losses": losses}


def _scores(test: dict[str, Any]) -> dict[str, float]:
    masks = test["auc"] is None or math.isnan(test["auc"])
    values = {**test, "dice": statistics.mean(test["per_class"]["f1"][1:]) if masks else math.nan}
    return {name: math.nan if values[name] is None else float(values[name]) for name in SCORES}


def _loss(torch: Any, logits: Any, labels: Any, job: Job) -> Any:
    """Cross-entropy; for masks plus the soft Dice loss as medmpi defines it: per image and class, then averaged."""
    entropy = torch.nn.functional.cross_entropy(logits, labels)
    if job.dataset.task == "classification":
        return entropy
    p = logits.softmax(1)
    truth = torch.nn.functional.one_hot(labels, p.shape[1]).permute(0, 3, 1, 2)
    smooth = job.criterion.smooth
    overlap, total = (p * truth).sum((2, 3)), p.sum((2, 3)) + truth.sum((2, 3))
    return entropy + 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def _optimizer(torch: Any, model: Any, job: Job) -> Any:
    options = job.options
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=job.base_lr, momentum=options.momentum, nesterov=options.nesterov,
            weight_decay=options.weight_decay, fused=True,
        )  # fmt: skip
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=job.base_lr, weight_decay=options.weight_decay, fused=True)


def _images(torch: Any, batch: Any) -> Any:
    return torch.from_numpy(batch.images.copy()).permute(0, 3, 1, 2)


def _evaluate(torch: Any, model: Any, job: Job, name: str) -> metrics.Scores:
    split = job.dataset.splits[name]
    ids = np.arange(len(split), dtype=np.int64)
    logits, labels, losses = [], [], []
    model.eval()
    k, masks = len(job.dataset.classes), job.dataset.task == "segmentation"
    confusion = np.zeros((k, k), np.int64)
    with torch.no_grad(), Loader(split, global_batches(ids, 16 if masks else 64)) as loader:
        for batch in loader:
            found = model(_images(torch, batch))
            if masks:
                losses.append(len(batch.ids) * _loss(torch, found, torch.from_numpy(batch.labels).long(), job).item())
                confusion += metrics.confusion_matrix(batch.labels, found.argmax(1).numpy(), k)
            else:
                logits.append(found.numpy())
                labels.append(batch.labels.copy())
    if masks:
        return metrics.from_confusion(confusion, loss=sum(losses) / len(split), auc=math.nan, samples=len(split))
    return metrics.classification(np.concatenate(labels), np.concatenate(logits))


if __name__ == "__main__":
    # the same allocator as in the other benchmarks
    from .machine import TUNED_ALLOCATOR

    if os.environ.get("GLIBC_TUNABLES") != TUNED_ALLOCATOR:
        os.environ["GLIBC_TUNABLES"] = TUNED_ALLOCATOR
        os.execve(sys.executable, [sys.executable, "-m", "bench.recipe", *sys.argv[1:]], os.environ)
    sys.exit(main())
