"""Shapes of the models' results, from the smallest image on."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import models, nn


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("size", [(28, 28), (33, 47), (96, 80)])
def test_output_shape(name, size):
    width = 8 if "width" in models.MODELS[name].options else None
    graph = models.build(name, classes=4, channels=1, image_size=size, width=width)
    nn.Parameters(graph, seed=0)
    x = np.random.default_rng(0).standard_normal((2, *size, 1), np.float32)
    (y,), _ = graph.forward(x, context=nn.Context(train=False))
    assert y.shape == ((2, *size, 4) if name == "unet" else (2, 4))
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("name", "least", "options"),
    [
        ("alexnet", 15, {}),
        ("alexnet", 63, {"stem": "imagenet"}),
        ("inception_v1", 5, {}),
        ("inception_v1", 17, {"stem": "imagenet"}),
        ("mini_xception", 2, {}),
        ("resnet18", 5, {}),
        ("resnet50", 17, {"stem": "imagenet"}),
        ("unet", 16, {}),
    ],
)
def test_smallest_image(name, least, options):
    graph = models.build(name, classes=2, image_size=least, **options)
    nn.Parameters(graph, seed=0)
    (y,), _ = graph.forward(np.ones((1, least, least, 3), np.float32), context=nn.Context(train=False))
    assert y.shape[-1] == 2
    with pytest.raises(
        ValueError, match=rf"image_size is {least - 1}x\d+, expected at least {least}x{least} for {name}"
    ):
        models.build(name, classes=2, image_size=(least - 1, least + 9), **options)
