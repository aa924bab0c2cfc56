"""Where training starts and what it changes: weights of another model, frozen layers, learning rates by layer."""

from __future__ import annotations

import copy
import difflib
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from medmpi import models, nn
from medmpi.kernels import to_host
from medmpi.models.saved import find
from medmpi.nn import checkpoint
from medmpi.train.failure import USAGE, Failure, together

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
_ENOUGH = 0.9  # of the parameters below the head: less, and the file is of another network
_SHOWN = 4


def initialise_from(source: str, job: Job, world: World) -> tuple[list[str], str | None]:
    """Loads the file into the job's network on every rank. Collective.

    Lines that say what was taken and what was not, and a warning where it was little.
    Failure: no such file, a pickle, or a file of which nothing fits.
    """
    report = together(world, lambda: _load(source, job))
    crc = zlib.crc32(to_host(job.parameters.fixed).data, zlib.crc32(to_host(job.parameters.value).data))
    job.grid.data.agree({f"weights of --init {source} (checksum)": crc})
    warning = (
        f"only {report.share:.0%} of the network below its head is from {source}, the rest is random; is it the same "
        "--model, --width and --stem?"
    )
    return describe(report, source), warning if report.share < _ENOUGH else None


def _load(source: str, job: Job) -> nn.Loaded:
    path = Path(source).expanduser()
    if path.suffix in _PICKLED:
        raise Failure(
            f"--init {source}: a pickle, which can run code and is never loaded; where torch is installed, convert it: "
            f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), 'weights.safetensors')",
            USAGE,
        )
    try:
        state, metadata = checkpoint.load(find(path))
    except checkpoint.CheckpointError as error:
        raise Failure(f"--init: {error}", USAGE) from None
    classes: tuple[str, ...] | None = None
    if models.saved.KEY in metadata:
        try:
            classes = models.ModelSpec.from_metadata(metadata).classes
        except ValueError as error:
            raise Failure(f"--init {source}: {error}", USAGE) from None
    graph = job.graph
    if job.grid.stages > 1:  # the report is about the whole network, so a whole one takes the file
        graph = copy.deepcopy(job.model)
        nn.Parameters(graph, seed=job.options.seed)
    report = nn.load_pretrained(graph, state, new_head=classes is not None and classes != job.dataset.classes)
    if report.size == 0:
        raise Failure(
            f"--init {source}: nothing in it fits --model {job.options.model}: it has {_some(list(state))}; "
            f"the model has {_some(report.missing or report.mismatched)}",
            USAGE,
        )
    for node in job.graph.nodes if graph is not job.graph else []:
        layer, other = node.layer, graph[node.name]
        for mine, theirs in ((layer.p, other.p), (layer.b, other.b)):
            for name, value in mine.items():
                value[...] = to_host(theirs[name])
    return report


def describe(report: nn.Loaded, source: str) -> list[str]:
    """What a user must know about where the weights come from: a line per subject."""
    lines = [f"weights: {len(report.loaded)} tensors of {source}, {report.share:.1%} of the network below its head"]
    if report.prefix:
        lines[0] += f", without their prefix '{report.prefix}'"
    if report.adapted:
        lines.append(f"weights: {', '.join(report.adapted)} adapted to another number of image channels")
    if report.replaced:
        lines.append(f"weights: new head, for other classes: {', '.join(report.replaced)}")
    for names, what in (
        (report.mismatched, "of another shape, left at their start"),
        (report.missing, "not in the file, left at their start"),
        (report.unused, "of the file not used"),
    ):
        if names:
            lines.append(f"weights: {len(names)} {what}: {_some(names)}")
    return lines


def freeze(graph: nn.Graph, text: str) -> None:
    """Freezes what ``--freeze`` names; Failure where a name is unknown or nothing would be left to train."""
    if text in ("none", ""):
        return
    trained = [node.name for node in graph.nodes if node.layer.parameter_specs()]
    names: set[str] = set()
    for item in (part.strip() for part in text.split(",")):
        if item == "features":
            names |= set(trained) - {nn.head_of(graph).name}
            continue
        found = _below(item, trained)
        if not found:
            raise Failure(f"--freeze: no layer '{item}'{_hint(item, trained)}", USAGE)
        names |= set(found)
    if names == set(trained):
        raise Failure(f"--freeze {text} leaves nothing to train", USAGE)
    graph.freeze(names)


def layer_rates(graph: nn.Graph, text: str) -> dict[str, float]:
    """Node -> factor of the learning rate from ``--layer-lr``; nothing for "1". Failure for what makes no sense."""
    trained = [node.name for node in graph.nodes if node.layer.parameter_specs() and not node.layer.frozen]
    if "=" not in text:
        decay = _factor("--layer-lr", text)
        if decay == 1:
            return {}
        groups = blocks(graph)
        return {name: decay ** (len(groups) - 1 - i) for i, group in enumerate(groups) for name in group}
    factors: dict[str, float] = {}
    for item in (part.strip() for part in text.split(",")):
        prefix, _, value = item.partition("=")
        found = _below(prefix, trained)
        if not found:
            raise Failure(f"--layer-lr: no layer '{prefix}' that is trained{_hint(prefix, trained)}", USAGE)
        factors |= dict.fromkeys(found, _factor(f"--layer-lr {prefix}", value))
    return factors


def blocks(graph: nn.Graph) -> list[list[str]]:
    """The trained nodes in blocks from the input to the head, by the first part of their names (layer1, layer2, ...).

    A normalisation belongs to the block of its convolution. A network that has fewer than four such blocks is cut into
    its single layers.
    """
    nodes = [node for node in graph.nodes if node.layer.parameter_specs() and not node.layer.frozen]

    def cut(depth: int | None) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        last = ""
        for node in nodes:
            key = ".".join(node.name.split(".")[:depth])
            if isinstance(node.layer, nn.BatchNorm2d) and key not in found and last:
                key = last
            found.setdefault(key, []).append(node.name)
            last = key
        return list(found.values())

    coarse = cut(1)
    return coarse if len(coarse) >= 4 else cut(None)


def _below(prefix: str, names: list[str]) -> list[str]:
    return [name for name in names if name == prefix or name.startswith(prefix + ".")]


def _factor(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise Failure(f"{what} is '{text}', expected a factor of at least 0, or a list such as layer1=0.1,fc=2", USAGE)
    return value


def _hint(name: str, known: list[str]) -> str:
    tops = list(dict.fromkeys(part.split(".")[0] for part in known))
    close = difflib.get_close_matches(name, [*tops, *known], 1)
    return f"; did you mean '{close[0]}'?" if close else f", expected features or some of {', '.join(tops)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
