"""``medmpi plan``: how long a step would take on which grid of ranks, from measurements on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.parallel.plan import Network, Prediction
    from medmpi.train.options import Options
    from medmpi.train.survey import Survey

_FAR = "1.5,12.5"  # InfiniBand HDR as an MPI program sees it: microseconds, GB/s


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medmpi plan",
        description="Measures the network's layers and the exchange between ranks, predicts the step for every"
        " (replicas, stages, micro-batches), and chooses. Start it under mpirun with the ranks to plan for.",
        epilog="All flags of 'medmpi train' that say what is trained hold here too (--data, --model, --batch-size...).",
        allow_abbrev=False,
    )
    parser.add_argument("--verify", action="store_true", help="run each shape that fits the ranks and show the error")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each run of --verify (default: 7)")
    parser.add_argument("--memory", type=float, help="GiB per rank (default: this node's, shared by its ranks)")
    parser.add_argument("--extrapolate", type=int, default=4096, help="largest number of ranks (default: 4096)")
    parser.add_argument(
        "--network", default=_FAR, metavar="US,GB/S", help=f"latency and bandwidth between nodes (default: {_FAR})"
    )
    parser.add_argument("--ranks-per-node", type=int, help="for the extrapolation (default: the ranks of this node)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Plans and prints on rank 0; the exit code."""
    parser = _parser()
    mine, rest = parser.parse_known_args(argv)
    from medmpi import parallel
    from medmpi.train.config import ConfigError, parse
    from medmpi.train.failure import USAGE, Failure

    world = parallel.start()
    try:
        try:
            options = parse(rest, "medmpi plan")
        except ConfigError as error:
            raise Failure(str(error), USAGE) from None
        try:
            far = tuple(float(part) for part in mine.network.split(","))
        except ValueError:
            far = ()
        if len(far) != 2 or min(far) <= 0:
            raise Failure(f"--network is '{mine.network}', expected microseconds,GB/s such as {_FAR}", USAGE)
        if mine.steps < 1 or mine.extrapolate < 1 or (mine.ranks_per_node or 1) < 1 or (mine.memory or 1) <= 0:
            raise Failure("--steps, --extrapolate, --ranks-per-node and --memory must be above 0", USAGE)
        _plan(mine, options, world, (far[0] * 1e-6, far[1] * 1e9))
    except Failure as failure:
        if world.rank == 0:
            print(f"medmpi: error: {failure}", file=sys.stderr)
        return failure.code
    return 0


def _plan(mine: argparse.Namespace, options: Options, world: World, far: tuple[float, float]) -> None:
    from dataclasses import replace
    from functools import partial

    from medmpi.parallel.plan import choose, shapes
    from medmpi.train.failure import together
    from medmpi.train.job import network_of, open_data, settle
    from medmpi.train.planning import accuracies, forecast, node_memory, table, verify
    from medmpi.train.survey import survey

    dataset = together(world, lambda: open_data(options))
    options = settle(options, dataset.task, len(dataset.splits["train"]))
    image = (*dataset.image_size, dataset.channels)
    model = together(world, lambda: network_of(options, dataset))
    batch = options.batch_size

    def say(line: str) -> None:
        if world.rank == 0:
            print(line, flush=True)

    say(f"measuring {options.model}, {image[0]}x{image[1]}x{image[2]}, batch {batch}, on {world.size} ranks ...")
    found = survey(model, image, batch, world, options, turns=2 if mine.verify else 5)
    _describe(found, say)
    memory = mine.memory * 2**30 if mine.memory else node_memory() / world.local_size
    smaller = list(range(1, world.size + 1)) if mine.verify else [world.size]
    every = [
        forecast(found, options, batch, shape)
        for ranks in smaller
        for shape in shapes(ranks, batch, len(model), options.sync_batchnorm)
    ]
    runs: list[float] = []
    if mine.verify:
        make = partial(network_of, options, dataset)
        show = say if sys.stderr.isatty() else lambda line: None
        say(f"running {len(every)} shapes, in turns with the measurements ...")
        every, runs = verify(make, image, batch, options, every, world, found, mine.steps, say=show)
    say("")
    for line in table(every, runs, batch, memory):
        say(line)
    if runs:
        say("\n".join(accuracies(every, runs, mine.steps)))
    best = choose([p for p in every if p.replicas * p.stages == world.size], memory)
    if best is None:
        say(f"nothing fits {memory / 2**30:.1f} GiB per rank: more ranks, or --tiles")
    else:
        say(f"best for {world.size} ranks: {_flags(best)}")
        if runs:
            fastest = min(r for p, r in zip(every, runs, strict=True) if p.replicas * p.stages == world.size)
            say(f"  its run took {runs[every.index(best)] / fastest - 1:.1%} longer than the fastest shape's")
    size = mine.ranks_per_node or world.local_size
    crowd = found.machine.slowdown(size)
    network = replace(found.network, node_size=size, far_latency=far[0], far_bandwidth=far[1])
    say(f"\nup to {mine.extrapolate} ranks, {size} to a node (each {crowd:.2f} times slower than alone), between nodes")
    say(f"{far[0] * 1e6:g} us and {far[1] / 1e9:g} GB/s, global batch {batch} kept, or 64 per rank:")
    ranks = 1
    while ranks <= mine.extrapolate:
        say(f"{ranks:>6} ranks: " + _best_at(found, options, ranks, batch, len(model), network, memory))
        ranks *= 4


def _best_at(
    found: Survey, options: Options, ranks: int, batch: int, layers: int, network: Network, memory: float
) -> str:
    """The best shape for so many ranks, for a batch that stays and one that grows with them."""
    from medmpi.parallel.plan import choose, shapes
    from medmpi.train.planning import forecast

    parts = []
    for size in (batch, 64 * ranks):
        every = [
            forecast(found, options, size, shape, network=network)
            for shape in shapes(ranks, size, layers, options.sync_batchnorm)
        ]
        best = choose(every, memory)
        parts.append(
            f"batch {size}: too small or too large" if best is None
            else f"batch {size}: {best.describe()}, {best.seconds * 1e3:.1f} ms, {size / best.seconds:,.0f} images/s"
        )  # fmt: skip
    return "; ".join(parts)


def _describe(found: Survey, say: Callable[[str], None]) -> None:
    n, m = found.network, found.machine
    sizes = found.costs[0].images
    passes = ", ".join(f"{size:.0f}: {sum(c.seconds(size) for c in found.costs) * 1e3:.1f} ms" for size in sizes)
    total = sum(c.parameter_bytes for c in found.costs)
    say(f"layers: {len(found.costs)}, {total / 2**20:.1f} MiB of parameters; a pass of images: {passes}")
    say(
        f"ranks: messages {n.latency * 1e6:.1f} us, {n.bandwidth / 1e9:.2f} GB/s; a meeting {n.meeting * 1e6:.1f} us;"
        f" sums {n.sum_bandwidth / 1e9:.2f} GB/s; all ranks busy: {m.crowding[-1]:.2f} times slower"
    )


def _flags(plan: Prediction) -> str:
    text = f"--replicas {plan.replicas} --stages {plan.stages}"
    if plan.stages > 1:
        text += f" --micro-batches {plan.micro_batches} --cuts {','.join(map(str, plan.cuts))}"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
