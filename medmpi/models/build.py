"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from medmpi import nn

from . import alexnet, inception, mini_xception, resnet, unet, valid_cnn

SMALL = 64  # images up to this side get the "small" stem unless told otherwise
STEMS = ("auto", "small", "imagenet")


@dataclass(frozen=True)
class Model:
    """How to make a network: the options it takes besides classes and channels, and its smallest image (per stem)."""

    make: Callable[..., nn.Graph]
    options: tuple[str, ...]
    minimum: int | Mapping[str, int]


MODELS: dict[str, Model] = {
    "alexnet": Model(alexnet.alexnet, ("stem", "dropout"), alexnet.MINIMUM),
    "inception_v1": Model(inception.inception_v1, ("stem", "dropout", "kernel5"), inception.MINIMUM),
    "mini_xception": Model(mini_xception.mini_xception, ("image_size", "width", "momentum"), mini_xception.MINIMUM),
    "resnet18": Model(partial(resnet.resnet, "resnet18"), ("stem", "width"), resnet.MINIMUM),
    "resnet34": Model(partial(resnet.resnet, "resnet34"), ("stem", "width"), resnet.MINIMUM),
    "resnet50": Model(partial(resnet.resnet, "resnet50"), ("stem", "width"), resnet.MINIMUM),
    "unet": Model(unet.unet, ("image_size", "width"), unet.MINIMUM),
    "valid_cnn": Model(valid_cnn.valid_cnn, ("stem", "dropout"), valid_cnn.MINIMUM),
}


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    image_size: int | tuple[int, int],
    stem: str = "auto",
    dropout: float | None = None,
    width: int | None = None,
    kernel5: bool | None = None,
    momentum: float | None = None,
) -> nn.Graph:
    """The graph of the model `name`: images (N, H, W, channels) to logits (N, classes); U-Net: (N, H, W, classes).

    image_size: the side, or (height, width), that the model is made for.
    stem: "imagenet" for large images, "small" (no early down-sampling) for small ones; "auto" takes "small" up to 64
    pixels. alexnet, inception_v1 and the resnets have one.
    dropout: a probability instead of the model's own (alexnet 0.5, inception_v1 0.2).
    width: channels of the resnets' first stage, of mini_xception's middle, of the U-Net's first level (64).
    kernel5: the paper's 5x5 filters in inception_v1. momentum: of mini_xception's running statistics.

    ValueError: unknown name (lists the names), an option that the model does not have, an image below its smallest.
    """
    model = MODELS.get(name)
    if model is None:
        close = difflib.get_close_matches(name.lower().replace("-", "_"), MODELS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"build: model {name!r} is unknown, expected one of {', '.join(MODELS)}{hint}")
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    given: dict[str, Any] = {"dropout": dropout, "width": width, "kernel5": kernel5, "momentum": momentum}
    options = {option: value for option, value in given.items() if value is not None}
    if stem not in STEMS:
        raise ValueError(f"build: stem is {stem!r}, expected one of {', '.join(STEMS)}")
    if stem != "auto":
        options["stem"] = stem
    elif "stem" in model.options:
        options["stem"] = "small" if max(size) <= SMALL else "imagenet"
    for option in options:
        if option not in model.options:
            raise ValueError(f"build: {name} has no option {option!r}, expected one of {', '.join(model.options)}")

    _check(name, model, size, options)
    for what, value in (("classes", classes), ("channels", channels), ("width", options.get("width", 64))):
        if value < 1:
            raise ValueError(f"build: {what} is {value}, expected at least 1")
    if not 0 <= options.get("dropout", 0) < 1:
        raise ValueError(f"build: dropout is {dropout}, expected 0 <= dropout < 1")
    if "image_size" in model.options:
        options["image_size"] = size
    return model.make(classes=classes, channels=channels, **options)


def _check(name: str, model: Model, size: tuple[int, int], options: Mapping[str, Any]) -> None:
    stem = options.get("stem")
    least = model.minimum if isinstance(model.minimum, int) else model.minimum[str(stem)]
    if min(size) < least:
        kind = f"{name} with stem {stem!r}" if stem else name
        raise ValueError(f"build: image_size is {size[0]}x{size[1]}, expected at least {least}x{least} for {kind}")
