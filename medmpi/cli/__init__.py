"""The ``medmpi`` command: one module per command, imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("medmpi.cli.train", "train a network; under mpirun, on several ranks"),
    "transfer": ("medmpi.cli.transfer", "feature extraction against fine-tuning from other weights"),
    "prepare": (
        "medmpi.cli.prepare",
        "images to PNG or HDF5: noise, contrast, crop, size; on several ranks too",
    ),
    "infer": ("medmpi.cli.infer", "classify or segment files, folders, a watched folder, or what C-STORE brings"),
    "slide": ("medmpi.cli.slide", "whole slides: heatmaps, cluster jobs, stitching, FROC"),
    "plan": ("medmpi.cli.plan", "predict and choose replicas, stages and micro-batches for N ranks"),
    "run": ("medmpi.parallel.run", "start a command on N ranks with this environment's mpirun"),
    "evaluate": ("medmpi.cli.evaluate", "scores of trained models on any split, alone and as an ensemble"),
    "submit": ("medmpi.cli.submit", "write a batch script for Slurm, PBS or SGE and hand it in"),
    "compare": ("medmpi.cli.compare", "runs beside each other: accuracy, time, speed-up"),
    "reproduce": ("medmpi.cli.reproduce", "train a run folder's run again and compare"),
    "export": ("medmpi.cli.export", "write a trained model as ONNX"),
    "doctor": ("medmpi.cli.doctor", "try what training needs on this machine; what to do about what is wrong"),
    "info": ("medmpi.cli.info", "version, kernels, MPI and threads of this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``medmpi COMMAND ...`` and returns its exit code; 2 for an unknown command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: medmpi COMMAND [...]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:9} {text}")
        print("\n'medmpi COMMAND --help' explains a command.")
        return 0 if words else 2
    if words[0] == "--version":
        from medmpi import __version__

        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean '{close[0]}'?" if close else f", expected one of {', '.join(COMMANDS)}"
        print(f"medmpi: error: unknown command '{words[0]}'{hint}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(COMMANDS[words[0]][0])
        code: int = command.main(words[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("medmpi: error: interrupted", file=sys.stderr)
        return 130
    return code
