"""Frozen layers, gradients in inference mode, layer-wise rates and other models' weights, against torch."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import models, nn
from medmpi.nn import checkpoint
from medmpi.nn.measure import measure

torch = pytest.importorskip("torch", reason="torch is the oracle of transfer learning")
import torch_models  # noqa: E402


def pair(channels=3, classes=4):
    """ResNet-18 of ours and of torch with the same weights and running statistics that are not those of the start."""
    theirs = torch_models.build("resnet18", classes=classes, channels=channels, width=8, stem="small")
    generator = torch.Generator().manual_seed(0)
    for name, value in theirs.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    graph = models.build("resnet18", classes=classes, channels=channels, image_size=16, width=8, stem="small").fuse()
    return graph, theirs


def state_of(theirs):
    return {name: value.numpy().copy() for name, value in theirs.state_dict().items()}


def batch(n=6, channels=3):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, 16, 16, channels), np.float32), rng.integers(0, 4, n)


def torch_step(theirs, x, labels):
    logits = theirs(torch.from_numpy(x).permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    return logits.detach().numpy()


def close(actual, expected, tolerance=2e-5):
    scale = np.abs(expected).max() or 1.0
    assert np.abs(np.asarray(actual, np.float64) - expected).max() <= tolerance * scale


@pytest.mark.parametrize(
    "frozen",
    [("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), ("layer2",), ("bn1", "fc"), ("layer4", "conv1")],
    ids=",".join,
)
def test_frozen_layers_train_as_torch_trains_them(frozen):
    """torch: no gradients of the frozen ones, and their batch normalisation in eval mode."""
    graph, theirs = pair()
    theirs.train()
    below = {n.name for n in graph.nodes for p in frozen if n.name == p or n.name.startswith(p + ".")}
    for name, module in theirs.named_modules():
        if name in below:
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    graph.freeze([n.name for n in graph.nodes if n.name in below and n.layer.parameter_specs()])
    parameters = nn.Parameters(graph)
    checkpoint.load_state_dict(graph, state_of(theirs))
    x, labels = batch()
    logits = torch_step(theirs, x, labels)
    (ours,), saved = graph.forward(x, context=nn.Context(train=True))
    _, dlogits = nn.CrossEntropy()(ours, labels)
    done = []
    graph.backward((dlogits,), saved, done=lambda node: done.append(node.name))
    close(ours, logits)
    gradients = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(parameters.names()) == set(gradients)
    layers = {node.name: node.layer for node in graph.nodes}
    for full, gradient in parameters.named_gradients():
        node, _, name = full.rpartition(".")
        close(layers[node].to_torch(name, gradient), gradients[full], 1e-4)
    after = checkpoint.state_dict(graph)
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            close(after[name], value.numpy())
    assert len(done) == len(graph.nodes)
    nn.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1).step()
    moved = checkpoint.state_dict(graph)
    for name, value in after.items():
        trained = name in gradients
        assert np.array_equal(moved[name], value) == (not trained), name


def test_nothing_is_kept_before_the_first_trained_layer():
    graph, theirs = pair()
    graph.freeze([n.name for n in graph.nodes if n.layer.parameter_specs() and n.name != "fc"])
    parameters = nn.Parameters(graph)
    checkpoint.load_state_dict(graph, state_of(theirs))
    _, saved = graph.forward(batch()[0], context=nn.Context(train=True))
    assert [node.name for node, kept in zip(graph.nodes, saved, strict=True) if kept is not None] == ["fc"]
    assert len(parameters) == 64 * 4 + 4
    assert parameters.grad.size < 400


def test_gradients_in_inference_mode_equal_torch():
    graph, theirs = pair()
    theirs.eval()
    parameters = nn.Parameters(graph)
    checkpoint.load_state_dict(graph, state_of(theirs))
    x, labels = batch()
    images = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    torch.nn.functional.cross_entropy(theirs(images), torch.from_numpy(labels)).backward()
    (logits,), saved = graph.forward(x, context=nn.Context(train=False, keep=True))
    _, dlogits = nn.CrossEntropy()(logits, labels)
    (dx,) = graph.backward((dlogits,), saved, input_gradients=True)
    close(dx, images.grad.permute(0, 2, 3, 1).numpy(), 1e-4)
    layers = {node.name: node.layer for node in graph.nodes}
    for name, gradient in parameters.named_gradients():
        node, _, short = name.rpartition(".")
        close(layers[node].to_torch(short, gradient), dict(theirs.named_parameters())[name].grad.numpy(), 1e-4)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_rates_by_layer_equal_torch_groups(kind):
    graph, theirs = pair()
    parameters = nn.Parameters(graph)
    checkpoint.load_state_dict(graph, state_of(theirs))
    factors = {n.name: 0.1 if n.name.startswith("layer2") else 3.0 for n in graph.nodes if n.layer.parameter_specs()}
    factors.pop("fc")
    extra = {"momentum": 0.9} if kind == "SGD" else {}
    ours = getattr(nn, kind)(parameters, lr=0.01, weight_decay=0.01, **extra)
    ours.scale_rates(factors)
    groups = [
        {"params": [p], "lr": 0.01 * factors.get(name.rpartition(".")[0], 1.0)} for name, p in theirs.named_parameters()
    ]
    oracle = getattr(torch.optim, kind)(groups, lr=0.01, weight_decay=0.01, **extra)
    layers = {node.name: node.layer for node in graph.nodes}
    rng = np.random.default_rng(0)
    twins = dict(theirs.named_parameters())
    for _ in range(3):
        for name, gradient in parameters.named_gradients():
            gradient[...] = rng.standard_normal(gradient.shape)
            node, _, short = name.rpartition(".")
            twins[name].grad = torch.from_numpy(np.array(layers[node].to_torch(short, gradient)))
        ours.step()
        oracle.step()
    for name, value in checkpoint.state_dict(graph).items():
        close(value, theirs.state_dict()[name].numpy(), 1e-5)
    with pytest.raises(ValueError, match="'relu'"):
        ours.scale_rates({"relu": 1.0})


@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder."])
def test_weights_of_another_model(prefix):
    graph, _ = pair(channels=1, classes=3)
    theirs = torch_models.build("resnet18", classes=1000, channels=3, width=8, stem="small")
    nn.Parameters(graph, seed=5)
    head = graph["fc"].p["weight"].copy()
    state = {prefix + name: value.astype(np.float16 if value.dtype.kind == "f" else value.dtype)
             for name, value in state_of(theirs).items() if name != "layer3.1.bn2.weight"}  # fmt: skip
    state |= {prefix + "aux.weight": np.zeros(3, np.float32), prefix + "layer4.1.bn1.bias": np.zeros(7, np.float32)}
    report = nn.load_pretrained(graph, state)
    assert report.prefix == prefix
    assert report.adapted == ["conv1.weight"]
    assert report.replaced == ["fc.weight", "fc.bias"]
    assert report.missing == ["layer3.1.bn2.weight"]
    assert report.mismatched == ["layer4.1.bn1.bias (7, expected 64)"]
    assert report.unused == [prefix + "aux.weight"]
    assert 0.99 < report.share < 1
    np.testing.assert_array_equal(graph["fc"].p["weight"], head)
    after = checkpoint.state_dict(graph)
    np.testing.assert_array_equal(after["layer2.0.conv1.weight"], state[prefix + "layer2.0.conv1.weight"])
    # a grey image repeated for three channels gives the first layer of theirs the same response
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 1), np.float32)
    grey = torch.from_numpy(x).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
    response = graph["conv1"].forward(x, context=nn.Context(train=False))[0]
    close(response, theirs.conv1(grey).permute(0, 2, 3, 1).detach().numpy(), 3e-3)


def test_weights_for_more_channels():
    graph, _ = pair(channels=3)
    grey = torch_models.build("resnet18", classes=4, channels=1, width=8, stem="small")
    nn.Parameters(graph)
    report = nn.load_pretrained(graph, state_of(grey), new_head=True)
    assert report.adapted == ["conv1.weight"]
    assert report.replaced == ["fc.weight", "fc.bias"]
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 1), np.float32)
    response = graph["conv1"].forward(np.repeat(x, 3, axis=-1), context=nn.Context(train=False))[0]
    close(response, grey.conv1(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy())


def test_frozen_layers_are_measured():
    """Those in the middle pass gradients on, those at the beginning and the end do not."""
    graph, _ = pair()
    graph.freeze([n.name for n in graph.nodes if n.name.startswith(("conv1", "bn1", "layer2")) or n.name == "fc"])
    costs = measure(graph, (2, 16, 16, 3), rounds=1)
    assert [cost.name for cost in costs] == [node.name for node in graph.nodes]
    trained = {cost.name: cost.parameter_bytes > 0 for cost in costs}
    assert not trained["layer2.0.conv1"]
    assert trained["layer3.0.conv1"]
