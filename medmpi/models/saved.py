"""A trained model on disk that says itself what it is: how to build the network and how to prepare its images.

The description is JSON in the metadata of the checkpoint (key ``medmpi.model``), beside the weights that torch reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medmpi import nn
from medmpi.nn import checkpoint
from medmpi.nn.checkpoint import CheckpointError

from .build import build

KEY = "medmpi.model"
_OPTIONS = ("stem", "dropout", "width", "kernel5", "momentum")


@dataclass(frozen=True)
class ModelSpec:
    """What a network was trained for. Its input is ``(pixels / 255 - mean) / std`` per channel, (N, H, W, channels).

    ``task`` is "classification" or "segmentation"; ``options`` are those of ``models.build`` that were set.
    ``reading`` is how files became pixels (``data.Reading``'s JSON); None where the data were pixels already.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] | None = None

    def build(self) -> nn.Graph:
        """The network without parameters; ValueError where no such one can be built."""
        return build(
            self.name, classes=len(self.classes), channels=self.channels, image_size=self.image_size, **self.options
        )

    def to_metadata(self) -> dict[str, str]:
        """For the checkpoint's metadata."""
        return {KEY: json.dumps(asdict(self), ensure_ascii=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """The inverse of ``to_metadata``; ValueError where that is not in it or makes no sense."""
        if KEY not in metadata:
            raise ValueError(f"its metadata have no {KEY}, expected a checkpoint that medmpi.train wrote")
        try:
            found = json.loads(metadata[KEY])
            h, w = (int(side) for side in found["image_size"])
            spec = cls(
                name=str(found["name"]),
                task=str(found["task"]),
                classes=tuple(str(name) for name in found["classes"]),
                channels=int(found["channels"]),
                image_size=(h, w),
                mean=tuple(float(value) for value in found["mean"]),
                std=tuple(float(value) for value in found["std"]),
                options={key: value for key, value in found["options"].items() if key in _OPTIONS},
                reading=found.get("reading"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its metadata's {KEY} cannot be read: {error!r}") from None
        if not len(spec.mean) == len(spec.std) == spec.channels or not all(value > 0 for value in spec.std):
            raise ValueError(f"mean {spec.mean} and std {spec.std} do not fit {spec.channels} channels")
        return spec


@dataclass
class Saved:
    """A trained model in memory."""

    path: Path
    spec: ModelSpec
    graph: nn.Graph
    parameters: nn.Parameters
    metadata: Mapping[str, str]


def find(path: str | Path, which: str = "best") -> Path:
    """The checkpoint that ``path`` means: a file itself, or best (else last) of a run folder.

    CheckpointError where there is none.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path} does not exist, expected a run folder or a .safetensors file")
        return path
    wanted = [which, "last"] if which == "best" else [which]
    for place in (path / "checkpoints", path):
        for name in wanted:
            if (place / f"{name}.safetensors").is_file():
                return place / f"{name}.safetensors"
    raise CheckpointError(f"{path} has no checkpoints/{which}.safetensors, expected the folder of a run that has saved")


def load(path: str | Path, which: str = "best") -> Saved:
    """The model of a run folder or checkpoint file, ready for ``graph.forward`` or ``graph.fold()``.

    CheckpointError names the file where it is missing, damaged, or was not written by medmpi.train.
    """
    file = find(path, which)
    weights, metadata = checkpoint.load(file)
    try:
        spec = ModelSpec.from_metadata(metadata)
        graph = spec.build()
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    graph = graph.fuse()
    parameters = nn.Parameters(graph)
    try:
        checkpoint.load_state_dict(graph, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return Saved(file, spec, graph, parameters, metadata)
