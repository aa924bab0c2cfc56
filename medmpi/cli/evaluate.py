"""``medmpi evaluate RUN ... [--data SPEC]``: trained models on any split, alone and as an ensemble."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medmpi.train.config import ConfigError, SettingsParser
from medmpi.train.ensemble import Settings


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = SettingsParser(
        prog="medmpi evaluate",
        description="Scores of trained models on a split, and of all of them together. Runs under mpirun as well.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or .safetensors files of medmpi.train")
    parser.add_argument("--data", default=None, metavar="SPEC", help="data set (default: that of the first run)")
    parser.add_argument("--split", default="test", choices=("test", "val", "train"))
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint of run folders")
    parser.add_argument(
        "--fuse",
        default="probabilities",
        choices=("probabilities", "weights"),
        help="average the models' probabilities, or their weights into one model",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the models run")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="of products with --device cuda"
    )
    parser.add_argument("--threads", type=int, default=None, help="OpenMP threads per rank")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a rank may keep the others waiting")
    parser.add_argument("--out", default=None, metavar="FILE.json", help="write all scores to this file")
    return parser


def parse(argv: Sequence[str]) -> Settings:
    """Settings from the command line; ConfigError with one line otherwise."""
    given = vars(build_parser().parse_args(argv))
    for name in ("batch_size", "threads", "timeout"):
        if given[name] is not None and given[name] <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {given[name]}, expected more than 0")
    given["runs"] = tuple(given["runs"])
    if given["precision"] != "fp32" and given["device"] == "cpu":
        raise ConfigError(f"--precision {given['precision']} needs --device cuda: the CPU computes in fp32")
    if given["fuse"] == "weights" and len(given["runs"]) < 2:
        raise ConfigError("--fuse weights needs two models or more")
    return Settings(**given)


def main(argv: Sequence[str]) -> int:
    """Evaluates; the exit code."""
    from medmpi.train.ensemble import run
    from medmpi.train.main import launch

    return launch(argv, lambda: build_parser().format_help(), lambda: parse(argv), run)
