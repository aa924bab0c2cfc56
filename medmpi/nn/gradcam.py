"""Grad-CAM (Selvaraju et al. 2017): which places of an image speak for a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import kernels as K
from ..kernels.arrays import Array
from .graph import Graph
from .layer import Context
from .layers_conv import Conv2d
from .layers_norm import BatchNorm2d
from .layers_pointwise import Add, Concat, ReLU

_MAPS = (Conv2d, BatchNorm2d, Add, Concat, ReLU)


def last_map(graph: Graph, image: tuple[int, ...]) -> int:
    """Index of the last node that makes feature maps and after which nothing else is alive.

    ``image`` is the shape (N, H, W, C) of the input. ValueError for a graph whose output is a map itself.
    """
    shapes = graph.shapes(image)
    if len(shapes[graph.outputs[0]]) != 2:
        raise ValueError("last_map: the output is a map, expected a classifier")
    for i in reversed(range(len(graph.nodes) - 1)):
        value = graph.n_inputs + i
        kind = isinstance(graph.nodes[i].layer, _MAPS)
        if kind and len(shapes[value]) == 4 and graph.live(i + 1) == [value]:
            return i
    raise ValueError("last_map: no node makes a feature map that everything after it goes through")


def grad_cam(graph: Graph, images: Array, classes: Sequence[int] | NDArray[np.integer]) -> Array:
    """Maps (N, H, W) in 0..1 of what speaks for one class in each image (N, H, W, C); all 0 where nothing does.

    Channels of the last feature map, weighted by the mean gradient of the class's logit, summed, positive part,
    resized to the image. The network works as in inference; gradients of parameters that arise are left in the graph,
    as by any backward pass.
    """
    n, h, w, _ = images.shape
    first, rest = graph.split([last_map(graph, images.shape) + 1])
    context = Context(train=False)
    (maps,), _ = first.forward(images, context=context)
    (logits,), saved = rest.forward(maps, context=Context(train=False, keep=True))
    chosen: Array = K.empty(logits.shape)
    chosen.fill(0)
    chosen[np.arange(n), np.asarray(classes)] = 1
    (gradient,) = rest.backward((chosen,), saved, input_gradients=True)
    weights = gradient.mean((1, 2), keepdims=True)
    heat = np.maximum((maps * weights).sum(3, keepdims=True), 0).astype(np.float32)
    heat = np.asarray(K.resize(np.ascontiguousarray(heat), (h, w), mode="bilinear"))[..., 0]
    top = heat.reshape(n, -1).max(1)
    return np.asarray(heat / np.where(top > 0, top, 1)[:, None, None], np.float32)
