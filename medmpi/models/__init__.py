"""Networks by name (torchvision's parameter names) with ``build``, and trained ones from disk with ``load``."""

from .build import MODELS, SMALL, STEMS, build
from .saved import ModelSpec, Saved, load

__all__ = ["MODELS", "SMALL", "STEMS", "ModelSpec", "Saved", "build", "load"]
