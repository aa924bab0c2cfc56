"""The pulled-work queue: items of simulated work whose cost differs threefold, on many ranks.

``python -m bench work``: wall time beside the ideal packing (all work over all ranks, not below the longest item), the
part of it that rank 0's thread spends on answering, and what handing out costs an item that takes no time at all.
The work sleeps, so that ranks which outnumber the cores still work at the same time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from medmpi.parallel import pull, start
from medmpi.parallel.run import find_mpirun

ITEMS = 5000
MEAN = 0.02  # seconds of an item


def rank() -> None:
    """What each rank does."""
    world = start(60, threads=1)
    costs = [MEAN * (0.5 + ((2654435761 * i) % 1000) / 999) for i in range(ITEMS)]  # from 0.5 to 1.5 times the mean
    for _ in pull(world, range(world.size)):
        pass
    world.barrier()
    begin = time.perf_counter()
    busy = 0.0
    for cost in pull(world, costs):
        before = time.perf_counter()
        time.sleep(cost)
        busy += time.perf_counter() - before
    world.barrier()
    wall = time.perf_counter() - begin
    slept = sum(world.allgather(busy))
    begin = time.perf_counter()
    mine = sum(1 for _ in pull(world, range(ITEMS)))
    empty = time.perf_counter() - begin
    shares = world.allgather(mine)
    if world.rank == 0:
        ideal, asked = slept / world.size, sum(costs) / world.size
        print(
            f"{world.size:3} ranks, {ITEMS} items of {1e3 * min(costs):.0f}-{1e3 * max(costs):.0f} ms: {wall:.2f} s, "
            f"{100 * ideal / wall:.1f} % of ideal packing ({100 * asked / wall:.1f} % of what was asked of the clock); "
            f"an empty item: {1e6 * empty / ITEMS:.0f} us, shares {min(shares)}-{max(shares)}",
            flush=True,
        )


def main(options: argparse.Namespace) -> int:
    """Runs the ranks."""
    del options
    for ranks in (2, 4, 16, 32, 64):
        command = [str(find_mpirun()), "-n", str(ranks), sys.executable, "-m", "bench.bench_work"]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return 0


if __name__ == "__main__":
    rank()
