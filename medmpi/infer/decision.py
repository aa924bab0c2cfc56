"""From logits to probabilities and a class, by what the run chose on validation: its temperature and thresholds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from medmpi.infer.options import RULES
from medmpi.models import Saved
from medmpi.train.failure import USAGE, Failure

# of evaluation.json, in the order of those of the command line
_POINTS = dict(zip(RULES, ("Youden", "most correct", "sensitivity 95 %", "specificity 95 %"), strict=True))


@dataclass(frozen=True)
class Decision:
    """Logits are divided by ``temperature``. With two classes and a ``threshold``, the second one is called where its
    probability reaches it; else the likeliest class is.
    """

    temperature: float = 1.0
    threshold: float | None = None


def decide_by(saved: Saved, temperature: str, threshold: str | None) -> Decision:
    """The decision that ``--temperature`` and ``--threshold`` ask for; Failure where the run does not have it."""
    found = _evaluation(saved)
    t = float(temperature) if temperature != "auto" else float((found.get("calibration") or {}).get("temperature", 1.0))
    if threshold is None:
        return Decision(t)
    if saved.spec.task != "classification" or len(saved.spec.classes) != 2:
        raise Failure(f"--threshold {threshold}: a threshold is between two classes, the model has others", USAGE)
    if threshold not in RULES:
        return Decision(t, float(threshold))
    point = (found.get("points") or {}).get(_POINTS[threshold])
    if point is None:
        raise Failure(
            f"--threshold {threshold}: {saved.path} has no evaluation.json with this operating point beside it (a run "
            "with validation and test splits and a report writes it); give a number",
            USAGE,
        )
    return Decision(t, _tempered(float(point["threshold"]), t))


def _evaluation(saved: Saved) -> dict[str, Any]:
    """The run's evaluation.json where it is of these weights; else nothing."""
    path = saved.path.parent.parent / "evaluation.json"
    if saved.path.parent.name != "checkpoints" or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = str(found.get("epoch")) == saved.metadata.get("epoch")
        return found if same else {}
    except (ValueError, AttributeError):
        raise Failure(f"{path} is damaged; give --temperature 1, or evaluate the run again") from None


def _tempered(probability: float, temperature: float) -> float:
    """What a probability of the second of two classes becomes when logits are divided by the temperature."""
    if not 0 < probability < 1:
        return probability
    odds = math.log(probability / (1 - probability)) / temperature
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
