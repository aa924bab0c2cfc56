"""``medmpi transfer``: the same weights used in two ways, feature extraction and fine-tuning, side by side.

The table is that of the CBIS-DDSM study this follows (train and validation accuracy in two columns), with the column of
test accuracy that it left blank and with the gap between them: its 98 % of training beside 38 % of validation was
overfitting that nothing called out. All accuracies are of one evaluation with the weights that validation chose,
without augmentation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi.train.config import ConfigError, SettingsParser, parse
from medmpi.train.main import launch
from medmpi.train.options import Options

if TYPE_CHECKING:
    from medmpi.parallel import World

PROG = "medmpi transfer"
FEATURES, FINE, SCRATCH = "feature extraction", "fine-tuning", "from scratch"
_GENTLE = 0.2  # of the usual rate: larger steps forget what the weights have learned
_DECAY = "0.8"
OVERFIT, SOME = 0.10, 0.05  # of accuracy between training and test


@dataclass(frozen=True)
class Settings:
    """What to compare: the settings of the runs, and where the weights come from."""

    options: Options
    pretrain: str | None
    pretrain_epochs: int
    scratch: bool
    rates_given: bool

    @property
    def timeout(self) -> float:
        """Seconds that a rank may keep the others waiting."""
        return self.options.timeout


@dataclass(frozen=True)
class Column:
    """One way of training, measured."""

    name: str
    trained: int
    epoch: int
    accuracy: dict[str, float]  # of train, val and test
    test_auc: float
    seconds: float
    f1: float = float("nan")
    """Mean over classes, of the last split that there is; for masks the mean Dice."""

    @property
    def gap(self) -> float:
        """Training minus test accuracy (validation where there is no test split)."""
        other = self.accuracy["test"]
        return self.accuracy["train"] - (other if other == other else self.accuracy["val"])


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser(
        prog=PROG,
        usage=f"{PROG} (--init FILE | --pretrain SPEC) [flags of 'medmpi train']",
        description="Train with frozen features and with all layers from the same weights, and compare. All flags of "
        "'medmpi train' apply to both; --lr and --layer-lr default to 0.05 for the new head alone and to a fifth of "
        "it, falling by 0.8 from block to block towards the input, for fine-tuning.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--init", metavar="FILE", help="weights to start from: .safetensors with torch's names, or a run"
    )
    parser.add_argument("--pretrain", metavar="SPEC", help="train the weights first, on this data (as --data)")
    parser.add_argument(
        "--pretrain-epochs", type=int, default=0, metavar="INT", help="epochs of that (default: --epochs)"
    )
    parser.add_argument("--scratch", action="store_true", help="also train from random weights, for comparison")
    return parser


def read(argv: Sequence[str]) -> Settings:
    """The settings of a command line; ConfigError with one line for what makes no sense."""
    own, rest = _parser().parse_known_args(argv)
    if (own.init is None) == (own.pretrain is None):
        raise ConfigError("give the weights to start from, either --init FILE or --pretrain SPEC")
    if own.pretrain_epochs < 0:
        raise ConfigError(f"--pretrain-epochs is {own.pretrain_epochs}, expected 1 or more")
    options = parse([*rest, *(["--init", own.init] if own.init else [])], PROG)
    if options.freeze != "none":
        raise ConfigError("--freeze is what this command compares; leave it out")
    given = any(word.split("=")[0] == "--layer-lr" for word in rest) or options.layer_lr != "1"
    return Settings(options, own.pretrain, own.pretrain_epochs or options.epochs, own.scratch, given)


def main(argv: Sequence[str]) -> int:
    """Runs the comparison and returns the exit code."""
    argv = list(argv)
    return launch(argv, lambda: _parser().format_help(), lambda: read(argv), compare)


def compare(settings: Settings, world: World) -> None:
    """Trains each way in a folder of its own, prints the table and writes transfer.json and transfer.md. Collective."""
    from medmpi.files import write_whole
    from medmpi.train.failure import on_root
    from medmpi.train.log import finite

    options = settings.options
    folder = Path(on_root(world, lambda: str(_folder(options))))
    options = replace(options, out=str(folder))
    init = options.init
    if settings.pretrain is not None:
        init = _pretrain(settings, world, folder)
    default = options.lr is None
    gentle = _default_rate(options) * _GENTLE if default else options.lr
    ways = [
        (FEATURES, replace(options, init=init, freeze="features", layer_lr="1")),
        (FINE, replace(options, init=init, lr=gentle, layer_lr=options.layer_lr if settings.rates_given else _DECAY)),
    ]
    if settings.scratch:
        ways.append((SCRATCH, replace(options, init=None, layer_lr="1")))
    columns = []
    for name, how in ways:
        if world.rank == 0:
            print(f"--- {name}", flush=True)
        columns.append(_train(name, replace(how, out=str(folder / name.replace(" ", "-"))), world))
    source = settings.pretrain or init or ""
    text = table(columns, options.model, options.data, source)
    if world.rank == 0:
        print("\n" + text, flush=True)
    content: dict[str, Any] = {
        "model": options.model,
        "data": options.data,
        "weights": source,
        "columns": [vars(c) | {"gap": c.gap} for c in columns],
    }

    def write() -> None:
        write_whole(folder / "transfer.json", json.dumps(finite(content), indent=1) + "\n")
        write_whole(folder / "transfer.md", text + "\n")

    on_root(world, write)


def _default_rate(options: Options) -> float:
    from medmpi.train.job import DEFAULT_LR

    return DEFAULT_LR["sgd" if options.optimizer == "auto" else options.optimizer]


def _folder(options: Options) -> Path:
    """--out, or runs/transfer-NAME with a number if that is taken."""
    from medmpi.train.failure import USAGE, Failure
    from medmpi.train.folder import default_name, make_writable

    if options.out is not None:
        folder = Path(options.out)
        if (folder / "transfer.json").exists() and not options.resume:
            raise Failure(f"{folder} holds a comparison already; give another --out", USAGE)
    else:
        name = f"transfer-{default_name(options)}"
        folder, number = Path("runs") / name, 1
        while folder.exists() and not options.resume:
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    make_writable(folder, parts=())
    return folder


def _pretrain(settings: Settings, world: World, folder: Path) -> str:
    """Trains on the other data at the size of the images that follow; the run's folder."""
    from medmpi.train.failure import together
    from medmpi.train.job import open_data
    from medmpi.train.run import run

    options = settings.options
    size = together(world, lambda: open_data(options)).image_size
    if world.rank == 0:
        print(f"--- pretraining on {settings.pretrain}", flush=True)
    out = folder / "pretraining"
    run(
        replace(
            options, data=settings.pretrain or "", image_size=size, epochs=settings.pretrain_epochs, out=str(out),
            layer_lr="1",
        ),
        world,
    )  # fmt: skip
    return str(out)


def _train(name: str, options: Options, world: World) -> Column:
    from medmpi.train.evaluate import evaluate
    from medmpi.train.run import run

    done = run(options, world)
    accuracy = {}
    auc = f1 = float("nan")
    for split in ("train", "val", "test"):
        scores = evaluate(done.job, split, world)
        accuracy[split] = scores.accuracy
        if scores.samples:
            f1 = scores.f1
        if split == "test":
            auc = scores.auc
    return Column(name, len(done.job.parameters), done.epoch, accuracy, auc, done.seconds, f1)


def table(columns: Sequence[Column], model: str, data: str, source: str) -> str:
    """The comparison as a Markdown table with a verdict per column."""

    def percent(value: float) -> str:
        return f"{100 * value:.2f} %" if value == value else "no such split"

    rows = [
        ["", *(c.name for c in columns)],
        ["---", *("---:" for _ in columns)],
        ["trained parameters", *(f"{c.trained:,}" for c in columns)],
        ["weights of epoch", *(str(c.epoch) for c in columns)],
        ["train accuracy", *(percent(c.accuracy["train"]) for c in columns)],
        ["validation accuracy", *(percent(c.accuracy["val"]) for c in columns)],
        ["test accuracy", *(percent(c.accuracy["test"]) for c in columns)],
        ["train minus test", *(f"{100 * c.gap:+.2f} points" for c in columns)],
        ["test AUC", *(f"{c.test_auc:.4f}" if c.test_auc == c.test_auc else "–" for c in columns)],
        ["F1 (masks: Dice), mean over classes", *(f"{c.f1:.4f}" if c.f1 == c.f1 else "–" for c in columns)],
        ["time", *(f"{c.seconds:.0f} s" for c in columns)],
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(1 + len(columns))]
    lines = [f"Transfer learning: {model} on {data}, weights from {source}", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(verdict(column) for column in columns)])


def verdict(column: Column) -> str:
    """Whether a way overfits, in words."""
    other = "test" if column.accuracy["test"] == column.accuracy["test"] else "validation"
    side = "above" if column.gap >= 0 else "below"
    points = f"train accuracy is {100 * abs(column.gap):.1f} points {side} {other}"
    if column.gap != column.gap:
        return f"{column.name}: no split to tell whether it overfits"
    val = column.accuracy["train"] - column.accuracy["val"]
    if column.gap >= SOME and column.gap - val >= SOME and val < SOME:
        return (
            f"{column.name}: {points} but validation only {100 * val:.1f}: the test split is of another kind than the "
            "training data (other patients or devices, or chance in a small split), which validation does not show"
        )
    if column.gap >= OVERFIT:
        return f"{column.name}: OVERFITS, {points}: more data, augmentation, or fewer trained layers would help"
    if column.gap >= SOME:
        return f"{column.name}: overfits somewhat, {points}"
    return f"{column.name}: does not overfit, {points}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
