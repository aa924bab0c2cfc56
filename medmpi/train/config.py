"""From a TOML file and flags to Options: flags win over the file, the file over the defaults.

Standard argparse, not a configuration library: it starts in 0.02 s where jsonargparse took 0.10-0.18 s of the budget of
0.3 s, and file and flags share one converter, so that both give the same one-line messages.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medmpi.train.options import Options

_FIELDS = {f.name: f for f in dataclasses.fields(Options)}
_GROUPS = ("data", "model", "optimisation", "parallel", "run")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class ConfigError(Exception):
    """A setting that cannot be: one line that names it. Ends the program with exit code 2."""


class SettingsParser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of all flags; defaults are left out so that only what the user gave is returned."""
    parser = SettingsParser(
        prog=prog,
        usage=f"{prog} [RUN.toml] [--flags]",
        description="Train a convolutional network on medical images; start it under mpirun for several ranks.",
        epilog="A TOML file holds the same names without the dashes; a flag wins over the file. Without mpirun: -n N "
        "starts N ranks, --supervise K starts a run that failed again from its last checkpoint, up to K times, and "
        "after the loss of a rank on one rank fewer, but not fewer than --min-ranks M (default 1).",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("file", nargs="?", metavar="RUN.toml", help="settings file (same as --config)")
    parser.add_argument("--config", metavar="FILE", help="settings file")
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    for f in _FIELDS.values():
        meta, text = f.metadata, f.metadata["help"]
        if f.default is not None and f.default != ():
            text += f" (default: {_text(f.default)})"
        flag = "--" + f.name.replace("_", "-")
        group = groups[meta["group"]]
        if isinstance(f.default, bool):
            group.add_argument(flag, nargs="?", const="true", metavar="BOOL", help=text)
            group.add_argument(
                "--no-" + flag[2:], dest=f.name, action="store_const", const="false", help=argparse.SUPPRESS
            )
        else:
            choices = meta.get("choices")
            metavar = "{" + ",".join(choices) + "}" if choices else meta.get("metavar", _kind(f).upper())
            group.add_argument(flag, metavar=metavar, help=text.replace("%", "%%"))
    return parser


def parse(argv: Sequence[str], prog: str = "medmpi.train") -> Options:
    """Options from the command line and the files that it names; ConfigError with one line otherwise."""
    given, unknown = build_parser(prog).parse_known_args(_close_switches(argv))
    flags = vars(given)
    if unknown:
        raise ConfigError(_unknown_flag(unknown[0]))
    files = [flags.pop(key) for key in ("file", "config") if key in flags]
    if len(files) == 2:
        raise ConfigError(f"two settings files given, {files[0]} and {files[1]}; expected one")
    if files and not str(files[0]).endswith(".toml"):
        raise ConfigError(f"{files[0]}: expected a settings file named *.toml, or a flag beginning with --")
    values: dict[str, Any] = {
        name: convert(name, value, "--" + name.replace("_", "-")) for name, value in flags.items()
    }
    # A resumed run needs no more than its folder: the settings it was started with come from there.
    saved = Path(values["out"]) / "config.toml" if values.get("resume") and values.get("out") else None
    layers = [read_toml(saved)] if saved is not None and saved.is_file() else []
    layers += [read_toml(Path(path)) for path in files]
    merged: dict[str, Any] = {}
    for layer in (*layers, values):
        merged.update(layer)
    options = Options(**merged)
    check(options)
    return options


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, converted and checked one by one."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _FIELDS:
            raise ConfigError(f"{path}: unknown key '{key}'{_suggest(name, _FIELDS)}")
        values[name] = convert(name, value, f"{path}: {key}")
    return values


def convert(name: str, value: Any, where: str) -> Any:
    """A value given as text (flag) or as a TOML value, in the field's type and within its limits."""
    f = _FIELDS[name]
    kind, meta = _kind(f), f.metadata
    if kind == "list":
        parts: Sequence[Any] = value
        if isinstance(value, str):
            parts = [part for part in value.replace("x", ",").strip("[]() ").split(",") if part.strip()]
        elif not isinstance(value, list):
            parts = [value]
        return tuple(_number(where, part, int, meta) for part in parts)
    if kind == "int":
        return _number(where, value, int, meta)
    if kind == "float":
        return _number(where, value, float, meta)
    if kind == "bool":
        found = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if found is None:
            raise ConfigError(f"{where} is '{value}', expected true or false")
        return found
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}, expected text")
    choices = meta.get("choices")
    if choices and value not in choices:
        hint = _suggest(value, choices)
        raise ConfigError(f"{where} is '{value}', expected one of {', '.join(choices)}{hint}")
    return value


def check(options: Options) -> None:
    """Refuses settings that do not fit together or that no code serves yet."""
    if options.parallel == "auto" and (options.replicas or options.stages * options.tiles > 1 or options.cuts):
        raise ConfigError("--parallel auto chooses --replicas, --stages and --cuts, expected none of them beside it")
    if options.tiles > 1 and options.reproducible:
        raise ConfigError("--reproducible sums by whole images and cannot be had with --tiles, expected one of the two")
    if options.wire != "fp32" and options.reproducible:
        raise ConfigError("--reproducible sums exactly and cannot be had with --wire bf16, expected one of the two")
    if options.tiles > 1 and not options.sync_batchnorm:
        raise ConfigError("--tiles needs --sync-batchnorm: the rows of an image are normalised together")
    if options.device == "cpu" and options.precision != "fp32":
        raise ConfigError(f"--precision {options.precision} needs --device cuda: the CPU computes in fp32")
    if options.device != "cpu":
        host_only = (
            ("--stages", options.stages > 1), ("--tiles", options.tiles > 1), ("--reproducible", options.reproducible),
            ("--parallel auto", options.parallel == "auto"),
        )  # fmt: skip
        for flag, given in host_only:
            if given:
                raise ConfigError(f"{flag} works on the CPU alone so far, expected --device cpu with it")
    if options.stages > 1 and "noise" in (options.schedule, options.grow_batch):
        raise ConfigError("the gradients' noise is measured on whole models only, expected --stages 1")
    if options.average_every:
        clashes = (
            ("--reproducible", options.reproducible), ("--balance", options.balance), ("--stages", options.stages > 1),
            ("--tiles", options.tiles > 1), ("--schedule noise", options.schedule == "noise"),
            ("--grow-batch noise", options.grow_batch == "noise"),
        )  # fmt: skip
        for name, given in clashes:
            if given:
                raise ConfigError(f"{name} does not go with --average-every: gradients are not summed over ranks then")
    if options.grow_batch != "none" and options.max_accumulate < 2 * options.accumulate:
        raise ConfigError(
            f"--max-accumulate is {options.max_accumulate}, expected at least twice --accumulate {options.accumulate}"
        )
    if options.schedule == "step" and not options.milestones:
        raise ConfigError("--schedule step needs --milestones, for example --milestones 60,80")
    if list(options.milestones) != sorted(set(options.milestones)):
        raise ConfigError(f"--milestones is {_text(options.milestones)}, expected rising epochs")
    if options.image_size is not None and len(options.image_size) not in (1, 2):
        raise ConfigError(f"--image-size has {len(options.image_size)} numbers, expected one or height,width")
    if options.nesterov and (options.optimizer not in ("auto", "sgd") or options.momentum == 0):
        raise ConfigError("--nesterov needs --optimizer sgd and a --momentum above 0")
    if options.augment != "auto":
        parse_augment(options.augment)
    if options.name is not None and (not options.name.strip() or "/" in options.name or options.name.startswith(".")):
        raise ConfigError(f"--name is '{options.name}', expected a plain folder name")


def _close_switches(argv: Sequence[str]) -> list[str]:
    """'--resume run.toml' -> '--resume=true run.toml': a switch takes a following word only if it is true or false."""
    switches = {"--" + f.name.replace("_", "-") for f in _FIELDS.values() if isinstance(f.default, bool)}
    closed = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        closed.append(word + "=true" if word in switches and following.lower() not in _WORDS else word)
    return closed


_STRENGTHS = {"crop": 2.0, "rotate": 15.0, "zoom": 0.1, "brightness": 0.1, "contrast": 0.1, "color": 0.1}
_SWITCHES = ("flip", "vflip", "rotate90")


def parse_augment(text: str) -> dict[str, float]:
    """'crop:4,flip' -> {'crop': 4.0, 'flip': 1.0}; 'none' -> {}. 'auto' depends on the images and is not for here."""
    if text in ("none", ""):
        return {}
    found = {}
    for item in text.split(","):
        name, colon, strength = item.strip().partition(":")
        if name not in _STRENGTHS and name not in _SWITCHES:
            known = (*_SWITCHES, *_STRENGTHS)
            raise ConfigError(f"--augment: unknown '{name}', expected {', '.join(known)}{_suggest(name, known)}")
        if colon and name in _SWITCHES:
            raise ConfigError(f"--augment: {name} has strength '{strength}', expected none: it is on or off")
        try:
            value = float(strength) if colon else _STRENGTHS.get(name, 1.0)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0 and (name != "crop" or value == int(value))):
            kind = "a whole number" if name == "crop" else "a number"
            raise ConfigError(f"--augment: {name} has strength '{strength}', expected {kind} of at least 0")
        found[name] = value
    return found


def to_toml(options: Options, remarks: Sequence[str] = ()) -> str:
    """The settings as a TOML file that read_toml takes back; unset ones are left as comments."""
    lines = [f"# {remark}" for remark in remarks]
    for group in _GROUPS:
        lines += ["", f"# {group}"]
        for f in _FIELDS.values():
            if f.metadata["group"] != group or f.name == "resume":
                continue
            value, key = getattr(options, f.name), f.name.replace("_", "-")
            if value is None:
                lines.append(f"# {key} = (default)")
            else:
                lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines).lstrip() + "\n"


def differences(old: Mapping[str, Any], new: Options, names: Sequence[str]) -> list[str]:
    """'name: old -> new' for each named setting that differs from the stored ones."""
    changed = []
    for name in names:
        before, after = old.get(name, _FIELDS[name].default), getattr(new, name)
        if before != after:
            changed.append(f"{name.replace('_', '-')}: {_text(before)} -> {_text(after)}")
    return changed


def _kind(f: dataclasses.Field[Any]) -> str:
    annotation = str(f.type)
    if annotation.startswith("tuple"):
        return "list"
    return annotation.split(" ")[0]


def _number(where: str, value: Any, kind: type, meta: Mapping[str, Any]) -> int | float:
    word = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{where} is {value!r}, expected {word}")
    try:
        number: int | float = kind(value)
    except ValueError:
        raise ConfigError(f"{where} is '{value}', expected {word}") from None
    if kind is int and isinstance(value, float) and value != number:
        raise ConfigError(f"{where} is {value}, expected a whole number")
    limits = []
    good = math.isfinite(number)
    if "low" in meta:
        good, limits = good and number >= meta["low"], [f"at least {meta['low']}"]
    if "above" in meta:
        good, limits = good and number > meta["above"], [f"above {meta['above']:g}"]
    if "high" in meta:
        good, limits = good and number <= meta["high"], [*limits, f"at most {meta['high']}"]
    if "below" in meta:
        good, limits = good and number < meta["below"], [*limits, f"below {meta['below']:g}"]
    if not good:
        raise ConfigError(f"{where} is {value}, expected {word} {' and '.join(limits)}".rstrip())
    return number


def _unknown_flag(text: str) -> str:
    if not text.startswith("-"):
        return f"unexpected argument '{text}', expected one settings file and flags beginning with --"
    name = text.split("=")[0].lstrip("-").replace("-", "_")
    return f"unknown flag '{text.split('=')[0]}'{_suggest(name, [*_FIELDS, 'config', 'help'], '--')}"


def _suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{prefix}{close[0].replace('_', '-') if prefix else close[0]}'?" if close else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's basic strings escape as JSON's
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value)
