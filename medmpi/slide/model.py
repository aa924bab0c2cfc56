"""A trained classifier for slides: folded for inference, with how its images are prepared and which scores it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi import nn
from medmpi.data import DataError
from medmpi.kernels.arrays import Array
from medmpi.models.saved import load
from medmpi.slide.reader import Pixels


@dataclass
class Classifier:
    """``graph`` is folded; images are (pixels / 255 - mean) / std of ``window`` (h, w) pixels."""

    graph: nn.Graph
    classes: tuple[str, ...]
    window: tuple[int, int]
    channels: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    digest: str
    path: str = ""
    _input: Array = field(default_factory=lambda: np.empty(0, np.float32), repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The classes whose probabilities are kept: of two, the second alone."""
        return self.classes[1:] if len(self.classes) == 2 else self.classes

    def prepare(self, pixels: Pixels) -> Array:
        """uint8 RGB (h, w, 3) as the network's input (h, w, channels), which the next call overwrites."""
        image = pixels if self.channels == 3 else K.rgb_to_gray(np.ascontiguousarray(pixels))[..., None]
        if self._input.size < image.size:
            self._input = K.empty((image.size,))
        out = self._input[: image.size].reshape(image.shape)
        return K.normalize(np.ascontiguousarray(image), self.mean, self.std, out=out)

    def keep(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """The columns that are kept, of (..., classes)."""
        return probabilities[..., -len(self.columns) :]


def load_classifier(path: str | Path) -> Classifier:
    """The classifier of a run folder or checkpoint. DataError where it is none, or does not take RGB or grey images."""
    try:
        saved = load(path)
    except nn.checkpoint.CheckpointError as error:
        raise DataError(path, error, "name the run folder or checkpoint of a classifier") from error
    spec = saved.spec
    if spec.task != "classification" or spec.channels not in (1, 3):
        raise DataError(
            saved.path, f"is a {spec.task} model of {spec.channels} channels", "expected a classifier of 1 or 3"
        )
    digest = hashlib.blake2b(saved.path.read_bytes(), digest_size=8).hexdigest()
    return Classifier(
        saved.graph.fold(), spec.classes, spec.image_size, spec.channels, np.array(spec.mean), np.array(spec.std),
        digest, str(saved.path.resolve()),
    )  # fmt: skip


def tuned(classifier: Classifier, batch: int = 16) -> dict[str, str]:
    """Chooses the fastest convolutions by timing; the choice must be kept with the results: it changes last bits."""
    return nn.tune(classifier.graph, (batch, *classifier.window, classifier.channels))


def set_algorithms(classifier: Classifier, chosen: Mapping[str, Any]) -> None:
    """Sets what :func:`tuned` chose before."""
    for name, algo in chosen.items():
        layer = classifier.graph[name]
        if isinstance(layer, nn.FoldedConv2d):
            layer.algo = str(algo)
