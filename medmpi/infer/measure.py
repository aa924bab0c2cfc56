"""How long an image takes, and how many a second can come before too many wait (S0 fig. 4: mean 28.5 ms, limit 40).

First one image after the other: the distribution of the network's own time, and of all from uint8 pixels to a mask or
probabilities. Then images that arrive at random (Poisson) at a rate, as from a scanner room: a latency is from arrival
to result, waiting included. Each rank has a stream of its own at its share of the rate; the rate is raised until the
99th percentile passes the limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels as K
from medmpi.files import write_whole
from medmpi.infer.options import Options
from medmpi.infer.predictor import Predictor
from medmpi.infer.results import percentiles
from medmpi.train.failure import on_root

if TYPE_CHECKING:
    from medmpi.parallel import World

_WARM_UP = 5
_STEPS = 6  # of bisection
_LONGEST = 8.0  # seconds of one step
_SLOWEST = 8.0  # the lowest rate tried is this part of the highest possible one


def run_measure(options: Options, world: World, predictor: Predictor, say: Callable[[str], None]) -> None:
    """Prints the distributions and the highest rate; with --out, latency.json and latency.png. Collective."""
    rng = np.random.default_rng(world.rank)
    pixels = rng.integers(0, 256, predictor.shape).astype(np.uint8)
    world.barrier("measure")
    alone = [_once(predictor, pixels) for _ in range(_WARM_UP + options.images)][_WARM_UP:]
    gathered = world.gather(alone)
    network, whole, processor = ([t[k] for rank in gathered or [] for t in rank] for k in range(3))
    h, w = predictor.spec.image_size
    head = f"{predictor.spec.name} {h}x{w}, {world.size} ranks, {K.threads()} threads each"
    say(f"{head}: one after the other, {len(whole)} images, ms")
    for name, values in (("network", network), ("pixels to result", whole), ("processor time", processor)):
        say(f"  {name:18}" + "  ".join(f"{k} {v:.2f}" for k, v in percentiles(values).items()))
    within = sum(v <= options.limit_ms for v in whole)
    say(f"  {within} of {len(whole)} within {options.limit_ms:g} ms")
    mean = world.broadcast(float(np.mean(whole)) if whole else 0.0)
    highest = 1000.0 / mean
    rates: list[dict[str, float]] = []
    low, high = highest / _SLOWEST, highest
    for step in range(_STEPS):
        share = low if step == 0 else 0.5 * (low + high)  # images a second and rank
        images = max(20, min(options.images, int(share * _LONGEST)))
        late = world.gather(_stream(predictor, pixels, share, images, seed=1000 * world.rank + step))
        found = percentiles([v for rank in late or [] for v in rank])
        kept = world.broadcast(found.get("p99", 0.0) <= options.limit_ms)
        rates.append({"images_per_s": round(share * world.size, 2), **found})
        if not kept and step == 0:
            break
        low, high = (share, high) if kept else (low, share)
    say(f"arriving at random, ms from arrival to result (limit {options.limit_ms:g} ms for 99 %):")
    for line in sorted(rates, key=lambda r: r["images_per_s"]):
        times = "  ".join(f"{k} {v:.2f}" for k, v in line.items() if k != "images_per_s")
        say(f"  {line['images_per_s']:8.1f} images/s  {times}")
    kept_rates = [r["images_per_s"] for r in rates if r.get("p99", 0.0) <= options.limit_ms]
    best = max(kept_rates, default=0.0)
    if world.rank == 0:
        text = f"up to {best:.1f} images/s" if best else "at no rate tried"
        print(f"{head}: {text} with 99 % within {options.limit_ms:g} ms", flush=True)
    if options.out is not None:
        out = Path(options.out).expanduser()
        on_root(world, lambda: _write(out, head, network, whole, processor, rates, options.limit_ms, best))


def _once(predictor: Predictor, pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Milliseconds of the network, of all, and the processor's of all (its threads together)."""
    start = time.perf_counter()
    predictor.logits(pixels)
    network = time.perf_counter() - start
    start, busy = time.perf_counter(), time.process_time()
    predictor.predict(pixels, predictor.spec.image_size)
    return 1000 * network, 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - busy)


def _stream(predictor: Predictor, pixels: NDArray[np.uint8], rate: float, images: int, *, seed: int) -> list[float]:
    """Milliseconds from arrival to result of images that arrive at random."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / max(rate, 1e-9), images))
    start = time.perf_counter()
    found = []
    for arrival in arrivals:
        wait = start + arrival - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        predictor.predict(pixels, predictor.spec.image_size)
        found.append(1000 * (time.perf_counter() - start - arrival))
    return found


def _write(
    out: Path,
    head: str,
    network: list[float],
    whole: list[float],
    processor: list[float],
    rates: list[dict[str, float]],
    limit: float,
    best: float,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "what": head,
        "network_ms": percentiles(network),
        "image_ms": percentiles(whole),
        "processor_ms": percentiles(processor),
        "rates": rates,
        "limit_ms": limit,
        "images_per_s_within_limit": best,
        "image_ms_all": [round(v, 3) for v in whole],
    }
    write_whole(out / "latency.json", json.dumps(content, indent=1) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(whole, bins=min(40, max(10, len(whole) // 5)), color="tab:blue")
    left.axvline(float(np.mean(whole)), color="black", linestyle=":", label=f"mean {np.mean(whole):.1f} ms")
    left.axvline(limit, color="tab:red", label=f"limit {limit:g} ms")
    left.set(xlabel="ms per image", ylabel="images", title="one after the other")
    left.legend()
    ordered = sorted(rates, key=lambda r: r["images_per_s"])
    for name in ("p50", "p99"):
        right.plot([r["images_per_s"] for r in ordered], [r[name] for r in ordered], "o-", label=name)
    right.axhline(limit, color="tab:red")
    right.set(xlabel="images per second", ylabel="ms from arrival to result", title="arriving at random", yscale="log")
    right.legend()
    figure.suptitle(head)
    figure.savefig(out / "latency.png", dpi=110)
