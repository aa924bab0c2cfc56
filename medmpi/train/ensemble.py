"""Trained models evaluated on any split, alone and together: S3's model fusion.

Together they either average the probabilities that each gives (an ensemble) or become one model with the mean of their
weights, which makes sense for checkpoints of one run or of runs that began with the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import models, nn
from medmpi.data import DataError, Dataset, normalise, open_dataset
from medmpi.files import write_whole
from medmpi.models.saved import Saved
from medmpi.nn.checkpoint import CheckpointError
from medmpi.parallel import collect
from medmpi.train import device, metrics
from medmpi.train.config import ConfigError, read_toml
from medmpi.train.failure import BAD_DATA, USAGE, Failure, StopRequested, on_root, together
from medmpi.train.log import finite
from medmpi.train.metrics import Scores

if TYPE_CHECKING:
    from medmpi.parallel import Outcome, World

Reals = NDArray[np.float64]
_TOGETHER = {"probabilities": "ensemble of {} models", "weights": "mean weights of {} models"}


@dataclass(frozen=True)
class Settings:
    """What to evaluate: ``runs`` are run folders or checkpoint files; data are the first run's unless given."""

    runs: tuple[str, ...]
    data: str | None = None
    split: str = "test"
    which: str = "best"
    fuse: str = "probabilities"
    batch_size: int = 64
    out: str | None = None
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    timeout: float = 300.0


@dataclass
class _Seen:
    """What a batch gives: labels (n,) and probabilities (models, n, classes), or confusions (models, n, c, c)."""

    labels: NDArray[np.int64]
    values: NDArray[Any]


def run(settings: Settings, world: World) -> None:
    """Evaluates, prints the scores of each model and of all together, and writes them on request. Collective."""
    if settings.threads is not None:
        K.set_threads(settings.threads)
    together(world, lambda: device.take(settings.device, settings.precision, world.local_rank))
    members = together(world, lambda: load_members(settings))
    if settings.device != "cpu":
        for node in (node for member in members for node in member.graph.nodes):
            node.layer.move(K.to_device)
    spec = members[0].spec
    datasets = together(world, lambda: _open(settings, members))
    n = len(datasets[0].splits[settings.split])
    if n == 0:
        raise Failure(f"the {settings.split} split of {datasets[0].describe()} is empty", USAGE)
    if world.rank == 0:
        print(f"data: {datasets[0].describe()}; {settings.split} split, {n} samples", flush=True)
    batches = [np.arange(i, min(i + settings.batch_size, n)) for i in range(0, n, settings.batch_size)]
    told = _teller(len(batches))
    outcomes = collect(world, lambda ids: _see(members, datasets, settings, ids), batches, on_result=told)
    results: dict[str, Scores] | None = None
    problem = None
    if outcomes is not None:
        missing = [i for i, outcome in enumerate(outcomes) if outcome is None]
        failed = [o for o in outcomes if o is not None and o.error is not None]
        if failed:
            problem = f"a batch failed on rank {failed[0].rank}: {(failed[0].error or '').strip().splitlines()[-1]}"
        elif not missing:
            seen = [o.value for o in outcomes if o is not None and o.value is not None]
            results = _scores(settings, members, seen, len(spec.classes), spec.task)
    if (message := world.broadcast(problem)) is not None:
        raise Failure(message, BAD_DATA)
    if world.broadcast(results is None):
        raise StopRequested("the evaluation, of which nothing is kept")
    on_root(world, lambda: _tell(settings, members, results or {}))


def load_members(settings: Settings) -> list[Saved]:
    """The models, checked against each other; one of mean weights where that is asked for."""
    try:
        members = [models.load(path, settings.which) for path in settings.runs]
    except CheckpointError as error:
        raise Failure(str(error)) from None
    first = members[0]
    for other in members[1:]:
        for name in ("task", "classes", "channels"):
            a, b = getattr(first.spec, name), getattr(other.spec, name)
            if a != b:
                raise Failure(f"{other.path} has {name} {b}, {first.path} has {a}: they cannot be joined", USAGE)
        if first.spec.task == "segmentation" and first.spec.image_size != other.spec.image_size:
            raise Failure(
                f"{other.path} is for images of {other.spec.image_size}, {first.path} of {first.spec.image_size}: "
                "masks of one size are needed",
                USAGE,
            )
    if settings.fuse == "weights":
        _average_weights(members)
    return members


def _average_weights(members: list[Saved]) -> None:
    """The first member becomes the mean; the only one that is left."""
    states = [nn.checkpoint.state_dict(member.graph) for member in members]
    for member, state in zip(members[1:], states[1:], strict=True):
        if state.keys() != states[0].keys() or any(state[k].shape != v.shape for k, v in states[0].items()):
            raise Failure(f"{member.path} is another model than {members[0].path}: weights cannot be averaged", USAGE)
    mean = {
        name: np.mean([s[name] for s in states], axis=0, dtype=np.float64).astype(value.dtype)
        if value.dtype.kind == "f"
        else value
        for name, value in states[0].items()
    }
    nn.checkpoint.load_state_dict(members[0].graph, mean)
    del members[1:]


def _open(settings: Settings, members: Sequence[Saved]) -> list[Dataset]:
    """The data at the size of each model; datasets of one size are shared."""
    folder = Path(settings.runs[0])
    stored: dict[str, Any] = {}
    try:
        if (folder / "config.toml").is_file():
            stored = read_toml(folder / "config.toml")
    except ConfigError as error:
        raise Failure(str(error), USAGE) from None
    data = settings.data or stored.get("data")
    if data is None:
        raise Failure(f"{folder} does not say what it was trained on; give --data", USAGE)
    task: Any = members[0].spec.task
    opened: dict[tuple[int, int], Dataset] = {}
    for member in members:
        if member.spec.image_size in opened:
            continue
        try:
            dataset = open_dataset(
                data,
                task=task,
                image_size=member.spec.image_size,
                seed=stored.get("seed", 0),
                val_fraction=stored.get("val_fraction", 0.1),
            )
        except DataError as error:
            raise Failure(str(error), BAD_DATA) from error
        except ValueError as error:
            raise Failure(f"--data {data}: {error}", USAGE) from error
        spec = member.spec
        if len(dataset.classes) != len(spec.classes) or dataset.channels != spec.channels:
            raise Failure(
                f"{data} has classes {', '.join(dataset.classes)} and {dataset.channels} channels, {member.path} was "
                f"trained for {', '.join(spec.classes)} and {spec.channels}",
                USAGE,
            )
        opened[spec.image_size] = dataset
    return [opened[member.spec.image_size] for member in members]


def _see(members: Sequence[Saved], datasets: Sequence[Dataset], settings: Settings, ids: NDArray[np.int64]) -> _Seen:
    """All models on one batch; images are normalised as each model was trained."""
    classes = len(members[0].spec.classes)
    probabilities: list[Reals] = []
    read: dict[int, tuple[NDArray[np.uint8], NDArray[Any]]] = {}
    for member, dataset in zip(members, datasets, strict=True):
        if id(dataset) not in read:
            read[id(dataset)] = dataset.splits[settings.split].read(ids)
        images, targets = read[id(dataset)]
        mean, std = (np.asarray(v, np.float32) for v in (member.spec.mean, member.spec.std))
        x: Any = normalise(images, mean, std)
        if settings.device != "cpu":
            x = K.to_device(x)
        (logits,), _ = member.graph.forward(x, context=nn.Context(train=False))
        z = K.to_host(logits).astype(np.float64)
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        probabilities.append(e / e.sum(axis=-1, keepdims=True))
    labels = np.asarray(targets, np.int64)
    if labels.ndim == 1:
        return _Seen(labels, np.stack(probabilities))
    candidates = [*probabilities, np.mean(probabilities, axis=0)]
    confusions = [
        [metrics.confusion_matrix(labels[i].reshape(-1), p[i].argmax(-1).reshape(-1), classes) for i in range(len(ids))]
        for p in candidates
    ]
    return _Seen(np.empty(0, np.int64), np.array(confusions))


def _scores(
    settings: Settings, members: Sequence[Saved], seen: list[_Seen], classes: int, task: str
) -> dict[str, Scores]:
    """Scores by name: each model's own, and those of all together."""
    names = list(settings.runs) if settings.fuse == "probabilities" else []
    names.append(_TOGETHER[settings.fuse].format(len(settings.runs)))
    values = np.concatenate([part.values for part in seen], axis=1)
    if task == "classification":
        labels = np.concatenate([part.labels for part in seen])
        tables = [*values, values.mean(axis=0)] if settings.fuse == "probabilities" else list(values)
        # log p as logits: their softmax is p
        found = [metrics.classification(labels, np.log(np.maximum(p, 1e-300))) for p in tables]
    else:
        nan = float("nan")
        sums = values.sum(axis=1)
        kept = sums if settings.fuse == "probabilities" else sums[-1:]
        found = [metrics.from_confusion(c, loss=nan, auc=nan, samples=values.shape[1]) for c in kept]
    if len(names) == 2 and len(found) == 2 and settings.fuse == "probabilities":  # one model: no ensemble of it
        names, found = names[:1], found[:1]
    return dict(zip(names, found, strict=True))


def _teller(total: int) -> Any:
    """Prints how far it is, every ten seconds."""
    begun = last = time.monotonic()
    done = 0

    def told(outcome: Outcome[_Seen]) -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 10 and done < total:
            last = now
            left = (now - begun) / done * (total - done)
            print(f"batch {done}/{total}, {left:.0f} s left", flush=True)

    return told


def _tell(settings: Settings, members: Sequence[Saved], results: dict[str, Scores]) -> None:
    width = max(map(len, results))
    for name, scores in results.items():
        figures = ("loss", "accuracy", "precision", "recall", "f1", "auc", "iou")
        shown = [f"{f} {value:.4f}" for f in figures if (value := getattr(scores, f)) == value]
        print(f"{name:{width}}  {' '.join(shown)}", flush=True)
    if settings.out is not None:
        content = {
            "split": settings.split,
            "classes": list(members[0].spec.classes),
            "results": {n: {**asdict(s), "confusion": s.confusion.tolist()} for n, s in results.items()},
        }
        write_whole(Path(settings.out), json.dumps(finite(content), indent=1) + "\n")
        print(f"results in {settings.out}", flush=True)
