"""How long an image takes, and how many a second can come before too many wait (S0 fig. 4: mean 28.5 ms, limit 40).

First one image after the other: the distribution of the network's own time, and of all from uint8 pixels to a mask or
probabilities. Then images that arrive by themselves, at regular intervals as from a camera and at random (Poisson) as
from many senders: a latency is from arrival to result, waiting included. Ranks pull them as they do files; the highest
rate at which 99 % keep the limit is found by bisection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_SHARE = 0.99  # of the images that shall keep the limit
# Of each kind of arrivals: steps of bisection, the lowest rate as a part of the highest possible, seconds of a step.
_ARRIVALS = {"regular": (5, 1 / 4, 4.0), "random": (5, 1 / 16, 12.0)}
_NAMES = {"regular": "regular intervals", "random": "random"}
_FEWEST = 100  # images of a step: one of them may be late
Rate = dict[str, Any]


def run_measure(options: Options, world: World, predictor: Predictor, say: Callable[[str], None]) -> None:
    """Prints the distributions and the highest rates; with --out, latency.json and latency.png. Collective."""
    rng = np.random.default_rng(world.rank)
    pixels = rng.integers(0, 256, predictor.shape).astype(np.uint8)
    world.barrier("measure")
    alone = [_once(predictor, pixels) for _ in range(_WARM_UP + options.images)][_WARM_UP:]
    gathered = world.gather(alone)
    network, whole, processor = ([t[k] for rank in gathered or [] for t in rank] for k in range(3))
    h, w = predictor.spec.image_size
    ranks, threads = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((world.size, "rank"), (K.threads(), "thread")))
    head = f"{predictor.spec.name} {h}x{w}, {ranks}, {threads} each"
    say(f"{head}: one after the other, {len(whole)} images, ms")
    for name, values in (("network", network), ("pixels to result", whole), ("processor time", processor)):
        say(f"  {name:18}" + "  ".join(f"{k} {v:.2f}" for k, v in percentiles(values).items()))
    within = sum(v <= options.limit_ms for v in whole)
    say(f"  {within} of {len(whole)} within {options.limit_ms:g} ms")
    highest = world.broadcast(1000.0 * world.size / float(np.median(whole)) if whole else 0.0)
    rates: list[Rate] = []
    best: dict[str, float] = {}
    for kind, (steps, lowest, seconds) in _ARRIVALS.items():
        found = _search(options, world, predictor, pixels, kind, highest, steps, lowest, seconds)
        best[kind] = max((r["images_per_s"] for r in found if r["kept"]), default=0.0)
        say(f"arriving at {_NAMES[kind]}, ms from arrival to result (limit {options.limit_ms:g} ms for 99 %):")
        for rate in sorted(found, key=lambda r: r["images_per_s"]):
            times = "  ".join(f"{k} {rate[k]:.2f}" for k in ("mean", "p50", "p90", "p99", "max"))
            verdict = "kept" if rate["kept"] else "not kept"
            say(f"  {rate['images_per_s']:8.1f} images/s  {times}  {verdict}, {rate['late']} of {rate['images']} late")
        rates += found
    if world.rank == 0:
        for kind, value in best.items():
            text = f"up to {value:.1f} images/s" if value else "no rate tried"
            print(f"{head}: {text} at {_NAMES[kind]} with 99 % within {options.limit_ms:g} ms", flush=True)
    if options.out is not None:
        out = Path(options.out).expanduser()
        on_root(world, lambda: _write(out, head, network, whole, processor, rates, options.limit_ms, best))


def _search(
    options: Options,
    world: World,
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    kind: str,
    highest: float,
    steps: int,
    lowest: float,
    seconds: float,
) -> list[Rate]:
    """The rates tried, by bisection on a logarithmic scale. Collective."""
    low, high, rates = highest * lowest, highest, []
    for step in range(steps):
        rate = float(np.sqrt(low * high))
        images = max(_FEWEST, min(options.images, int(rate * seconds)))
        rng = np.random.default_rng(step)
        gaps = rng.exponential(1.0 / rate, images) if kind == "random" else np.full(images, 1.0 / rate)
        allowed = int((1 - _SHARE) * images + 1e-9)
        latencies = world.gather(_stream(predictor, pixels, world, np.cumsum(gaps), options.limit_ms, allowed))
        values = [v for rank in latencies or [] for v in rank]
        late = int(sum(v > options.limit_ms for v in values))
        kept = world.broadcast(late <= allowed)
        counts = {"images": len(values), "late": late, "kept": kept}
        rates.append({"arrivals": kind, "images_per_s": round(rate, 2), **counts, **percentiles(values)})
        low, high = (rate, high) if kept else (low, rate)
    return rates if world.rank == 0 else []


def _stream(
    predictor: Predictor, pixels: NDArray[np.uint8], world: World, arrivals: NDArray[Any], limit: float, allowed: int
) -> list[float]:
    """Milliseconds from arrival to result of this rank's images; it ends early when too many are late. Collective."""
    from medmpi.parallel import pull

    found: list[float] = []
    late = 0
    world.barrier("measure")
    start = time.perf_counter()
    for number in pull(world, list(range(len(arrivals)))):
        if late > allowed:
            continue
        wait = start + arrivals[number] - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        predictor.predict(pixels, predictor.spec.image_size)
        found.append(1000 * (time.perf_counter() - start - arrivals[number]))
        late += int(found[-1] > limit)
    return found


def _once(predictor: Predictor, pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Milliseconds of the network, of all, and the processor's of all (its threads together)."""
    start = time.perf_counter()
    predictor.logits(pixels)
    network = time.perf_counter() - start
    start, busy = time.perf_counter(), time.process_time()
    predictor.predict(pixels, predictor.spec.image_size)
    return 1000 * network, 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - busy)


def _write(
    out: Path,
    head: str,
    network: list[float],
    whole: list[float],
    processor: list[float],
    rates: list[Rate],
    limit: float,
    best: dict[str, float],
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
    ordered = sorted(rates, key=lambda r: float(r["images_per_s"]))
    for kind, colour in (("regular", "tab:blue"), ("random", "tab:orange")):
        of_kind = [r for r in ordered if r["arrivals"] == kind]
        for name, line in (("p50", ":"), ("p99", "-")):
            points = [r["images_per_s"] for r in of_kind], [r[name] for r in of_kind]
            right.plot(*points, "o" + line, color=colour, label=f"{kind}, {name}")
    right.axhline(limit, color="tab:red")
    right.set(
        xlabel="images per second", ylabel="ms from arrival to result", title="arriving by themselves", yscale="log"
    )
    right.legend()
    figure.suptitle(head)
    figure.savefig(out / "latency.png", dpi=110)
