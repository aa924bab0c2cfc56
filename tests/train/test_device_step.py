"""Steps on a device without the host's look at them: the same captured in a graph, kernel by kernel, and as usual."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from medmpi import kernels as K
from medmpi import nn
from medmpi.data import Augment, Batch, Loader
from medmpi.train import step
from medmpi.train.device_feed import DeviceFeed, Staging
from medmpi.train.device_step import DeviceStep, obstacle
from medmpi.train.finite import Buffers

needs_device = pytest.mark.skipif(not K.devices(), reason=f"no CUDA device: {K.missing_device()}")


def classifier():
    g = nn.Graph()
    x = g.add("conv", nn.Conv2d(2, 4, 3, padding=1, bias=False), 0)
    x = g.add("norm", nn.BatchNorm2d(4), x)
    x = g.add("relu", nn.ReLU(), x)
    x = g.add("drop", nn.Dropout(0.2), x)
    x = g.add("pool", nn.MaxPool2d(2), x)
    x = g.add("average", nn.GlobalAvgPool2d(), x)
    x = g.add("dropout", nn.Dropout(0.3), x)
    g.add("fc", nn.Linear(4, 3), x)
    return g.fuse()


def segmenter():
    g = nn.Graph()
    x = g.add("conv", nn.Conv2d(2, 4, 3, padding=1, bias=False), 0)
    x = g.add("norm", nn.BatchNorm2d(4), x)
    x = g.add("relu", nn.ReLU(), x)
    g.add("out", nn.Conv2d(4, 3, 1), x)
    return g.fuse()


class Pieces:
    """What ``parallel.Pipeline`` does with micro-batches on one rank."""

    def __init__(self, graph, micro_batches):
        self.graph, self.micro_batches = graph, micro_batches

    def step(self, images, n, context, loss, done):
        images = K.to_device(images)
        edges = [n * i // self.micro_batches for i in range(self.micro_batches + 1)]
        for first, last in pairwise(edges):
            rows = slice(first, last)
            moved = replace(context, first_sample=context.first_sample + first)
            (logits,), saved = self.graph.forward(images[rows], context=moved)
            hook = done if last == n else lambda node: None
            self.graph.backward((loss(rows, logits),), saved, done=hook)


def a_job(make, criterion, micro_batches=1):
    graph = make()
    return SimpleNamespace(
        graph=graph, pipeline=Pieces(graph, micro_batches), criterion=criterion, image=(4, 4, 2), statistics=None,
        parameters=nn.Parameters(graph, seed=1, device="cuda"), dataset=SimpleNamespace(classes=("a", "b", "c")),
        grid=SimpleNamespace(last=True, tile=0, tiles=1), tiling=None, local_labels=lambda labels: labels,
    )  # fmt: skip


CASES = {
    "classes": (classifier, nn.CrossEntropy([1.0, 2.0, 0.5]), 1, ()),
    "pieces": (classifier, nn.CrossEntropy(), 2, ()),
    "masks": (segmenter, nn.DiceCrossEntropy([1.0, 2.0, 0.5], dice=0.7), 1, (4, 4)),
}


def train(case, run_of):
    """Steps of changing sizes, rates and step numbers; all that they leave behind, and what made them."""
    make, criterion, micro_batches, mask = CASES[case]
    job = a_job(make, criterion, micro_batches)
    rng = np.random.default_rng(3)
    optimizer = nn.SGD(job.parameters, lr=0.1, momentum=0.9)
    run, made = run_of(job)
    left = []
    for i, n in enumerate((4, 4, 4, 2, 2, 2, 4)):
        images, labels = rng.standard_normal((n, 4, 4, 2), dtype=np.float32), rng.integers(0, 3, (n, *mask))
        context = nn.Context(train=True, seed=5, step=i, first_sample=3)
        job.parameters.zero_grad()
        finished = []
        batch = Batch(images, labels, np.arange(n))
        divisors = criterion.denominators(labels) * (1 + i)
        tally = run(batch, context, divisors, lambda node, to=finished: to.append(node.name))
        optimizer.lr = 0.1 / (1 + i)
        optimizer.step()
        left += [tally.loss, tally.correct, tally.predictions, tally.images, finished, job.parameters.value.numpy()]
    left += [K.to_host(value) for node in job.graph.nodes for value in node.layer.b.values()]
    return left, made


def as_usual(job):
    def run(batch, context, divisors, done):
        return step.run(job, batch, context, divisors, done)

    return run, None


@needs_device
@pytest.mark.parametrize("case", list(CASES))
def test_captured_steps_are_the_same_to_the_bit(case):
    want, _ = train(case, as_usual)
    for captured in (True, False):

        def run_of(job, captured=captured):
            made = DeviceStep(job, captured=captured)
            return made.run, made

        found, made = train(case, run_of)
        assert sorted(made.graphs) == ([2, 4] if captured else [])
        assert len(found) == len(want)
        for mine, other in zip(found, want, strict=True):
            np.testing.assert_array_equal(mine, other)


@needs_device
def test_a_graph_of_other_arrays_is_captured_anew():
    job = a_job(*CASES["masks"][:2])
    made = DeviceStep(job)
    batch = Batch(np.ones((2, 4, 4, 2), np.float32), np.ones((2, 4, 4), np.int64), np.arange(2))

    def go():
        job.parameters.zero_grad()
        loss = made.run(batch, nn.Context(), np.array([32.0, 2.0]), lambda node: None).loss
        return loss, job.parameters.grad.numpy()

    for _ in range(3):
        want = go()
    old = job.parameters.value
    job.parameters.move(lambda value: value.copy())
    K.fill_(old, 7.0)  # what the first graph reads
    for _ in range(2):
        found = go()
        assert found[0] == want[0]
        np.testing.assert_array_equal(found[1], want[1])
    K.fill_(job.parameters.value, 0.0)
    assert go()[0] != want[0]
    assert made.graphs.keys() == {2}


@needs_device
def test_labels_are_looked_at_before():
    job = a_job(*CASES["masks"][:2])
    labels = np.ones((2, 4, 4), np.int64)
    labels[1, 0, 3] = 3
    batch = Batch(np.ones((2, 4, 4, 2), np.float32), labels, np.arange(2))
    with pytest.raises(ValueError, match=r"labels\[1, 0, 3\] is 3, expected 0 to 2"):
        DeviceStep(job).run(batch, nn.Context(), np.array([32.0, 2.0]), lambda node: None)


def test_obstacles_are_named():
    job = SimpleNamespace(statistics=None, criterion=nn.CrossEntropy(), graph=classifier())
    assert obstacle(job) is None
    job.criterion = nn.CrossEntropy(gamma=2.0)
    assert "--focal-gamma" in obstacle(job)
    job.statistics = object()
    assert "--sync-batchnorm" in obstacle(job)


@needs_device
def test_running_statistics_go_back():
    graph = classifier()
    parameters = nn.Parameters(graph, device="cuda")
    buffers = Buffers(graph, parameters.running)
    buffers.keep()
    before = nn.checkpoint.state_dict(graph)
    graph.forward(K.to_device(np.ones((2, 4, 4, 2), np.float32)), context=nn.Context())
    changed = nn.checkpoint.state_dict(graph)
    assert changed["norm.num_batches_tracked"] == 1
    assert (changed["norm.running_var"] != before["norm.running_var"]).any()
    buffers.restore()
    for name, value in nn.checkpoint.state_dict(graph).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@needs_device
@pytest.mark.parametrize("masks", [False, True])
def test_batches_on_the_device_are_those_of_the_loader(masks):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 9, 7, 3), dtype=np.uint8)
    targets = rng.integers(0, 3, (10, 9, 7), dtype=np.uint8) if masks else rng.integers(0, 3, 10)
    mean, std = np.array([0.3, 0.5, 0.1], np.float32), np.array([0.21, 0.3, 0.17], np.float32)
    split = SimpleNamespace(name="train", mean=mean, std=std, read=lambda ids: (pixels[ids], targets[ids]))
    batches = [np.arange(4), np.arange(4, 8), np.arange(8, 10), np.arange(4)]
    staging = Staging()
    for augment in (None, Augment(crop_padding=2, horizontal_flip=True, zoom=0.2, brightness=0.3, colour=0.2)):
        transform = None if augment is None else augment.at(1, 2)
        with (
            Loader(split, batches, transform=transform) as host,
            DeviceFeed(staging, split, batches, transform, threads=2) as device,
        ):
            count = 0
            for mine, other in zip(device, host, strict=True):
                np.testing.assert_array_equal(K.to_host(mine.images), other.images)
                for labels in (mine.labels, K.to_host(mine.device_labels)):
                    np.testing.assert_array_equal(labels, other.labels)
                np.testing.assert_array_equal(mine.ids, other.ids)
                count += 1
        assert count == len(batches)
    with DeviceFeed(staging, split, batches, None, threads=1) as device:
        next(iter(device))  # and no more: threads end, and the next feed has its places
