"""``medmpi slide COMMAND``: one module per command in ``slide.commands``, imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Sequence

from medmpi.slide.launch import BAD_DATA, DONE, ERROR, INTERRUPTED, USAGE, UsageError, launched, start_world

COMMANDS = {
    "predict": "heatmap of slides from start to end, on this machine",
    "prepare": "tissue mask, patch grid and store of slides",
    "run": "heatmap scores of prepared slides; under mpirun, on several ranks",
    "submit": "the same as array jobs of Slurm, SGE or PBS",
    "task": "one array task (what the scripts of submit call)",
    "status": "what is done, failed, open and skipped",
    "stitch": "heatmaps, overlays, GeoJSON and a viewer from finished runs",
    "detect": "detections (score, x, y) from heatmaps",
    "classify": "slide-level scores from heatmaps by a random forest, AUC by stride",
    "froc": "lesion-level FROC by CAMELYON16's rules",
    "train-patches": "tumour and normal patches from annotations, for training",
    "tune-groups": "the fastest group size on a file system, and the cost of a job",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: medmpi slide COMMAND [...]\n")
        for name, text in COMMANDS.items():
            print(f"  {name:14} {text}")
        print("\n'medmpi slide COMMAND --help' explains a command.")
        return DONE if words else USAGE
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean '{close[0]}'?" if close else f", expected one of {', '.join(COMMANDS)}"
        print(f"medmpi: error: unknown slide command '{words[0]}'{hint}", file=sys.stderr)
        return USAGE
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it cannot read becomes an error of ours
    module = importlib.import_module(f"medmpi.slide.commands.{words[0].replace('-', '_')}")
    from medmpi.data import DataError
    from medmpi.nn.checkpoint import CheckpointError

    try:
        code: int = module.main(words[1:])
        return code
    except DataError as error:
        return _fail(str(error), BAD_DATA)
    except CheckpointError as error:  # scores that could not be written
        return _fail(f"{error}; run it again to go on", ERROR)
    except UsageError as error:
        return _fail(str(error), USAGE)
    except ImportError as error:
        return _fail(f"{error}; pip install 'medmpi[slide]'", ERROR)
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted; run it again to go on", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    if launched():  # one rank cannot go on and the others do not know
        start_world().abort(code, f"medmpi: error: {message}")
    print(f"medmpi: error: {message}", file=sys.stderr)
    return code
