"""Weights of another model as a start: loads what fits, replaces the head, and says what happened to every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.arrays import to_host
from .graph import Graph, Node
from .layers_conv import Conv2d

Arrays = Mapping[str, NDArray[Any]]
_COUNTER = ".num_batches_tracked"


@dataclass
class Loaded:
    """Names of tensors by what became of them; sizes count parameters and buffers of the model below its head."""

    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    """The first convolution, for another number of image channels."""
    replaced: list[str] = field(default_factory=list)
    """Of the head: they keep their initial values."""
    mismatched: list[str] = field(default_factory=list)
    """With both shapes."""
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """In the file, without a place in the model."""
    prefix: str = ""
    size: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """How much of the model below its head came from the file, 0 to 1."""
        return self.size / max(self.total, 1)


def head_of(graph: Graph) -> Node:
    """The last node with parameters: what turns features into classes. ValueError where no node has any."""
    for node in reversed(graph.nodes):
        if node.layer.parameter_specs():
            return node
    raise ValueError("head_of: the graph has no parameters")


def load_pretrained(graph: Graph, state: Arrays, *, new_head: bool = False) -> Loaded:
    """Sets the parameters and buffers that ``state`` has under torch's names (torchvision's, timm's ResNets).

    Names may share a prefix (``module.``, ``model.``, ``encoder.``). Any float type is taken. The head is left at its
    initial values where its shape differs or with ``new_head``. A first convolution for another number of channels is
    adapted: for grey images the filters of the colours are summed, which is what they compute on a grey RGB image.
    Other tensors whose shapes differ keep their initial values.
    """
    targets = {
        f"{node.name}.{name}": (node, name, value)
        for node in graph.nodes
        for name, value in {**node.layer.p, **node.layer.b}.items()
    }
    head = head_of(graph)
    report = Loaded(prefix=_prefix(state, targets))
    used = set()
    for full, (node, name, value) in targets.items():
        key = report.prefix + full
        below = node is not head
        report.total += value.size if below else 0
        if key not in state:
            if not full.endswith(_COUNTER):
                report.missing.append(full)
            continue
        used.add(key)
        given, want = np.asarray(state[key]), node.layer.to_torch(name, to_host(value)).shape
        if node is head and (new_head or given.shape != want):
            report.replaced.append(full)
            continue
        if (given.dtype.kind == "f") != (value.dtype.kind == "f"):
            report.mismatched.append(f"{full} ({given.dtype}, expected {value.dtype})")
            continue
        adapted = None if given.shape == want else _adapted(node, name, given, want)
        if given.shape != want and adapted is None:
            report.mismatched.append(f"{full} ({_shape(given.shape)}, expected {_shape(want)})")
            continue
        taken = node.layer.from_torch(name, given if adapted is None else adapted)
        value[...] = np.asarray(taken, value.dtype, order="C")
        (report.loaded if adapted is None else report.adapted).append(full)
        report.size += value.size if below else 0
    report.unused = [key for key in state if key not in used]
    return report


def _prefix(state: Arrays, targets: Mapping[str, Any]) -> str:
    """What stands before the model's names in most of the file's names."""
    found: Counter[str] = Counter()
    for name in targets:
        for key in state:
            if key == name or key.endswith("." + name):
                found[key[: len(key) - len(name)]] += 1
    return max(found, key=lambda p: (found[p], -len(p)), default="")


def _adapted(node: Node, name: str, given: NDArray[Any], want: tuple[int, ...]) -> NDArray[Any] | None:
    """Filters for another number of image channels; None where that is not the difference."""
    if not (isinstance(node.layer, Conv2d) and name == "weight" and node.inputs == (0,) and node.layer.groups == 1):
        return None
    if given.ndim != 4 or (given.shape[0], *given.shape[2:]) != (want[0], *want[2:]):
        return None
    have, channels = given.shape[1], want[1]
    if channels == 1:
        return np.asarray(given.sum(1, keepdims=True))
    # Repeated in turn and scaled, so that an image of equal channels gives the same response.
    return np.asarray(np.take(given, np.arange(channels) % have, axis=1) * (have / channels))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
