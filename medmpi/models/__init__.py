"""The networks: `build(name, ...)` gives an `nn.Graph` whose parameters carry torchvision's names."""

from .build import MODELS, build

__all__ = ["MODELS", "build"]
