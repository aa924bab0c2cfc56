"""Names, shapes, parameter counts and errors of the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_models

from medmpi import models, nn

# Counts: torchvision's documentation (GoogLeNet without its auxiliary heads), milesial/Pytorch-UNet, the Keras summary
# of S3-08 (94,474 trainable of 96,202).
FULL_SIZE = [
    ("resnet18", 1000, 224, 11_689_512),
    ("resnet34", 1000, 224, 21_797_672),
    ("resnet50", 1000, 224, 25_557_032),
    ("alexnet", 1000, 224, 61_100_840),
    ("inception_v1", 1000, 224, 6_624_904),
    ("mini_xception", 10, 32, 94_474),
    ("unet", 2, 96, 31_037_698),
]


@pytest.mark.parametrize(("name", "classes", "side", "count"), FULL_SIZE, ids=[c[0] for c in FULL_SIZE])
def test_checkpoint_has_torchs_names_shapes_and_count(name, classes, side, count):
    graph = models.build(name, classes=classes, image_size=side)
    parameters = nn.Parameters(graph, seed=0)
    with torch.device("meta"):
        model = torch_models.build(name, classes=classes)
    state = nn.checkpoint.state_dict(graph)
    assert {k: v.shape for k, v in state.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert {k for k, v in state.items() if v.dtype == np.int64} == {
        k for k in state if k.endswith("num_batches_tracked")
    }
    assert len(parameters) == count


def test_stem_follows_the_image_size():
    def first(size, **options):
        graph = models.build("resnet18", classes=2, image_size=size, **options)
        return [node.name for node in graph.nodes[:3]]

    assert first(64) == ["conv1", "bn1", "layer1.0.conv1"]
    assert first((64, 65)) == ["conv1", "bn1", "maxpool"]
    assert first(224, stem="small") == first(64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet-18"}, "did you mean 'resnet18'"),
        ({"name": "RESNET50"}, "did you mean 'resnet50'"),
        ({"name": "vgg"}, "model 'vgg' is unknown, expected one of alexnet, inception_v1, mini_xception, resnet18"),
        ({"name": "resnet18", "stem": "large"}, "stem is 'large', expected one of auto, small, imagenet"),
        ({"name": "unet", "stem": "small"}, "unet has no option 'stem'"),
        ({"name": "resnet18", "dropout": 0.1}, "resnet18 has no option 'dropout'"),
        ({"name": "alexnet", "width": 32}, "alexnet has no option 'width'"),
        ({"name": "resnet18", "kernel5": True}, "resnet18 has no option 'kernel5'"),
        ({"name": "alexnet", "dropout": 1.0}, "dropout is 1.0, expected 0 <= dropout < 1"),
        ({"name": "unet", "width": 0}, "width is 0, expected at least 1"),
        ({"name": "mini_xception", "width": 9}, "width is 9, expected an even number"),
        ({"name": "unet", "classes": 0}, "classes is 0, expected at least 1"),
        ({"name": "unet", "channels": -1}, "channels is -1, expected at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{"classes": 2, "image_size": 32, **arguments})


def test_kernel5_gives_the_papers_filters():
    graph = models.build("inception_v1", classes=1000, image_size=224, kernel5=True)
    parameters = nn.Parameters(graph, seed=0)
    assert nn.checkpoint.state_dict(graph)["inception4a.branch3.1.conv.weight"].shape == (48, 16, 5, 5)
    assert len(parameters) == 7_005_832


@pytest.mark.parametrize(
    ("name", "parameter", "std"),
    [
        ("resnet18", "layer2.0.conv2.weight", (2 / (128 * 9)) ** 0.5),  # kaiming normal, fan out
        ("resnet18", "layer2.0.downsample.0.weight", (2 / 128) ** 0.5),
        ("resnet18", "fc.weight", (1 / (3 * 512)) ** 0.5),  # torch's default: uniform within 1 / sqrt(fan in)
        ("alexnet", "features.3.weight", (1 / (3 * 64 * 25)) ** 0.5),
        ("alexnet", "classifier.1.weight", (1 / (3 * 1024)) ** 0.5),
        ("inception_v1", "inception4a.branch2.1.conv.weight", 0.01),
        ("inception_v1", "fc.weight", 0.01),
        ("mini_xception", "exit.conv2.pointwise.weight", (2 / (128 + 128)) ** 0.5),  # Glorot
        ("mini_xception", "exit.conv2.depthwise.weight", (2 / (9 * 128 + 9)) ** 0.5),  # Keras's fans of a depthwise
        ("unet", "down2.maxpool_conv.1.double_conv.3.weight", (1 / (3 * 256 * 9)) ** 0.5),
        ("unet", "up1.up.weight", (1 / (3 * 512 * 4)) ** 0.5),  # torch counts a transposed filter's second axis
    ],
)
def test_initial_weights(name, parameter, std):
    graph = models.build(name, classes=200, image_size=32)
    spec, layer = next(
        (node.layer.parameter_specs()["weight"], node.layer)
        for node in graph.nodes
        if f"{node.name}.weight" == parameter
    )
    draw = layer.init.get("weight", spec.initialise)
    value = draw(np.random.default_rng(0), spec.shape, spec.fan_in, spec.fan_out).astype(np.float64)
    # standard error of a sample's standard deviation: at most std * sqrt(1 / 2n) for these distributions; 6 of them
    assert abs(value.std() / std - 1) < 6 * (0.5 / value.size) ** 0.5
    assert abs(value.mean()) < 6 * std / value.size**0.5


def test_biases_start_as_in_the_original():
    graph = models.build("mini_xception", classes=10, image_size=32)
    nn.Parameters(graph, seed=3)
    assert all(not v.any() for k, v in nn.checkpoint.state_dict(graph).items() if k.endswith("bias"))
    graph = models.build("alexnet", classes=10, image_size=32)
    nn.Parameters(graph, seed=3)
    bias = nn.checkpoint.state_dict(graph)["features.3.bias"]
    assert 0.8 < np.abs(bias).max() * (64 * 25) ** 0.5 <= 1
