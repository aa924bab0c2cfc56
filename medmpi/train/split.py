"""How a run's model is spread over the grid of ranks: its cuts, its micro-batches, its pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medmpi import nn
from medmpi.data import Batch
from medmpi.nn import tiles
from medmpi.nn.measure import NodeCost, measure
from medmpi.parallel import Grid, Pipeline
from medmpi.parallel.cuts import UNWANTED, balanced_cuts
from medmpi.parallel.spatial import RowExchange
from medmpi.train.failure import USAGE, Failure
from medmpi.train.options import Options

if TYPE_CHECKING:
    from medmpi.parallel import World

# Seconds per byte between stages, for choosing cuts only: what two processes of one machine reach.
_SECONDS_PER_BYTE = 4e-10
_MEASURED_BYTES = 1 << 28  # a batch whose images' values are at most that large is measured


def make_grid(options: Options, world: World) -> Grid:
    """The grid that the settings ask for; Failure where it does not fit the number of ranks."""
    part = options.stages * options.tiles
    split = " x ".join(
        f"--{name} {getattr(options, name)}" for name in ("stages", "tiles") if getattr(options, name) > 1
    )
    if world.size % part:
        raise Failure(f"{split} does not divide {world.size} ranks, expected a multiple of {part}", USAGE)
    if options.replicas is not None and options.replicas * part != world.size:
        also = f" x {split} are {options.replicas * part} ranks" if split else ""
        raise Failure(f"--replicas is {options.replicas}{also} but there are {world.size} ranks", USAGE)
    return Grid(world, stages=options.stages, tiles=options.tiles)


def choose_cuts(options: Options, model: nn.Graph, image: tuple[int, int, int], grid: Grid) -> list[int]:
    """The nodes before which the model is cut: those of --cuts, else by measured times. Collective."""
    if options.stages == 1:
        if options.cuts:
            raise Failure(f"--cuts is {options.cuts} but --stages is 1, expected one cut fewer than stages", USAGE)
        return []
    if options.stages > len(model):
        raise Failure(f"--stages is {options.stages}, expected at most the {len(model)} layers of the model", USAGE)
    if options.cuts:
        return named_cuts(options.cuts, model, options.stages)
    cuts: list[int] = []
    if grid.world.rank == 0:
        costs = measure_model(model, image, max(1, options.batch_size // grid.replicas))
        cuts = cuts_by_cost(model, image, costs, options.stages)
    return grid.world.broadcast(cuts, operation="choose cuts")


def measure_model(model: nn.Graph, image: tuple[int, int, int], images: int) -> list[NodeCost]:
    """The cost of each node for one image, measured with a few of the ``images`` of a step."""
    sizes = model.shapes((1, *image))
    largest = max(4 * prod(shape) for shape in sizes)
    n = max(1, min(images, 16, _MEASURED_BYTES // (8 * largest)))
    return [
        NodeCost(c.name, c.forward / n, c.backward / n, c.parameter_bytes, c.output_bytes // n, c.saved_bytes // n)
        for c in measure(model, (n, *image))
    ]


def cuts_by_cost(model: nn.Graph, image: tuple[int, int, int], costs: Sequence[NodeCost], stages: int) -> list[int]:
    """The cuts that make the slowest stage fastest, sending included."""
    sizes = model.shapes((1, *image))
    send = [_SECONDS_PER_BYTE * 8 * sum(prod(sizes[v]) for v in model.live(i)) for i in range(len(model))]
    for i, node in enumerate(model.nodes):
        # a convolution takes the moments of its result for the normalisation behind it: other cuts, other rounding
        if isinstance(node.layer, nn.BatchNorm2d) and node.inputs[0] >= model.n_inputs:
            send[i] += UNWANTED
    return balanced_cuts([c.seconds for c in costs], stages, transfer=send)


def named_cuts(text: str, model: nn.Graph, stages: int) -> list[int]:
    """``layer2.0.conv1,57``: names or numbers of the nodes that begin the second and later stages."""
    names = [node.name for node in model.nodes]
    cuts = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            cuts.append(names.index(word))
        elif word.isdecimal() and 0 < int(word) < len(names):
            cuts.append(int(word))
        else:
            close = difflib.get_close_matches(word, names, 1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise Failure(
                f"--cuts: '{word}' is no layer of the model, expected a name such as '{names[len(names) // 2]}'"
                f" or a number from 1 to {len(names) - 1}{hint}",
                USAGE,
            )
    if len(cuts) != stages - 1:
        raise Failure(f"--cuts has {len(cuts)} layers, expected {stages - 1} for --stages {stages}", USAGE)
    if any(a >= b for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)):
        raise Failure(f"--cuts is {text}, expected layers in the order of the model, not the first one", USAGE)
    return cuts


def micro_batches(options: Options, model: nn.Graph, stages: int) -> int:
    """--micro-batches, or what changes no result: 1 with batch normalisation, else enough to keep the stages busy."""
    if options.micro_batches:
        return options.micro_batches
    if stages == 1 or any(isinstance(node.layer, nn.BatchNorm2d) for node in model.nodes):
        return 1
    return 4 * stages


class Tiling:
    """The rows of images, of the values inside the network and of its output that this rank holds."""

    def __init__(self, model: nn.Graph, image: tuple[int, int, int], grid: Grid) -> None:
        assert grid.rows is not None
        self.exchange = RowExchange(grid.rows)
        try:
            self.graph, self.edges = tiles.tile(model, self.exchange, (1, *image))
        except ValueError as error:
            raise Failure(f"--tiles {grid.tiles}: {error}", USAGE) from None
        self._tile, self._pixels = grid.tile, self.edges[0]
        self.output = self.edges[-1]  # None where the output is no image
        if self.output is not None and self.output[-1] != image[0]:
            raise Failure(
                f"--tiles {grid.tiles}: the output has {self.output[-1]} rows for {image[0]} of images", USAGE
            )

    def images(self, batch: Batch) -> Batch:
        """The batch with the rows of its images; labels stay whole."""
        assert self._pixels is not None
        first, stop = self._pixels[self._tile], self._pixels[self._tile + 1]
        return Batch(np.ascontiguousarray(batch.images[:, first:stop]), batch.labels, batch.ids)

    def labels(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of masks; labels of whole images as they are."""
        if self.output is None:
            return labels
        return np.ascontiguousarray(labels[:, self.output[self._tile] : self.output[self._tile + 1]])

    def shape(self, value: int, size: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this rank's part of a value."""
        return tiles.local_shape(size, self.edges[value], self._tile)


def make_pipeline(
    options: Options,
    model: nn.Graph,
    cuts: Sequence[int],
    image: tuple[int, int, int],
    grid: Grid,
    unit: int,
    tiling: Tiling | None,
) -> tuple[nn.Graph, Pipeline]:
    """This rank's stage of the model and what runs it."""
    local = model if tiling is None else tiling.graph
    stages = local.split(cuts) if cuts else [local]
    graph = stages[grid.stage]
    count = micro_batches(options, model, grid.stages)
    edges = [0, *cuts, len(model)]

    def values(n: int, cut: int) -> list[tuple[int, ...]]:
        sizes = model.shapes((n, *image))
        return [sizes[v] if tiling is None else tiling.shape(v, sizes[v]) for v in model.live(cut)]

    pipeline = Pipeline(
        graph,
        grid,
        entering=lambda n: values(n, edges[grid.stage]),
        leaving=lambda n: values(n, edges[grid.stage + 1]),
        wanted_after=() if grid.last else stages[grid.stage + 1].wanted,
        micro_batches=count,
        schedule=options.pipeline,
        unit=unit,
        device=options.device != "cpu",
        whole_batch=options.sync_batchnorm and any(isinstance(node.layer, nn.BatchNorm2d) for node in model.nodes),
    )
    return graph, pipeline
