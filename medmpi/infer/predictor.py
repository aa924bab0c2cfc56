"""A trained model ready for one image after the other: folded, tuned, recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels, models, nn
from medmpi.data import MedicalImage, Reading, normalise
from medmpi.infer.decision import decide_by
from medmpi.nn.checkpoint import CheckpointError
from medmpi.train.failure import Failure


@dataclass
class Prediction:
    """Of one frame: ``probabilities`` (classes,) and ``label``, or ``mask`` uint8 (h, w) at the frame's size."""

    probabilities: NDArray[np.float64] | None
    mask: NDArray[np.uint8] | None
    label: int = 0


class Predictor:
    """The model of a run folder or checkpoint file. Failure where it cannot be used."""

    def __init__(
        self,
        run: str | Path,
        which: str = "best",
        *,
        temperature: str = "auto",
        threshold: str | None = None,
        tune: bool = True,
        device: str = "cpu",
    ) -> None:
        try:
            saved = models.load(run, which)
            self.spec = saved.spec
            self.reading = Reading() if self.spec.reading is None else Reading.from_json(self.spec.reading)
        except (CheckpointError, ValueError) as error:
            raise Failure(str(error)) from None
        self.file = saved.path
        self.decision = decide_by(saved, temperature, threshold)
        graph = saved.graph.fold()
        self.shape = (1, *self.spec.image_size, self.spec.channels)
        if device != "cpu":
            for node in graph.nodes:
                node.layer.move(kernels.to_device)
            self._session = nn.Session(graph, self.shape, device=device)
        else:
            self._session = nn.Session.tuned(graph, self.shape) if tune else nn.Session(graph, self.shape)
        self._mean, self._std = (np.asarray(v, np.float32) for v in (self.spec.mean, self.spec.std))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def segments(self) -> bool:
        return self.spec.task == "segmentation"

    def pixels(self, image: MedicalImage, frame: int) -> NDArray[np.uint8]:
        """A frame as the network saw its like in training, uint8 (1, h, w, c). DataError for NaN and the like."""
        return self.reading.frame(image, frame, self.spec.channels, self.spec.image_size)[None]

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's output for uint8 (1, h, w, c); valid until the next call."""
        self._session.inputs[0][...] = normalise(pixels, self._mean, self._std)
        self._session.run()
        result: NDArray[np.float32] = kernels.to_host(self._session.outputs[0])
        return result

    def predict(self, pixels: NDArray[np.uint8], original: tuple[int, int]) -> Prediction:
        """The prediction for a prepared frame whose image is of size ``original``."""
        logits = self.logits(pixels)[0]
        if not np.isfinite(logits).all():
            raise FloatingPointError("the network's output is NaN or infinite: its weights are damaged")
        if not self.segments:
            p = softmax(logits / self.decision.temperature)
            at = self.decision.threshold
            return Prediction(p, None, int(p.argmax()) if at is None else int(p[1] >= at))
        mask = (logits[..., 1] > logits[..., 0]).astype(np.uint8) if len(self.classes) == 2 else _argmax(logits)
        return Prediction(None, self.reading.unfit(mask, original))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _argmax(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(logits.argmax(axis=-1), np.uint8)
