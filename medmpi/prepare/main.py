"""From the command line of ``medmpi prepare`` to an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medmpi.prepare.options import Options, build_parser, parse
from medmpi.train.main import launch

if TYPE_CHECKING:
    from medmpi.parallel import World


def main(argv: Sequence[str] | None = None, prog: str = "python -m medmpi.prepare") -> int:
    """Prepares images and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def action(options: Options, world: World) -> None:
        from medmpi.prepare.run import run

        run(options, world)

    return launch(words, lambda: build_parser(prog).format_help(), lambda: parse(words, prog), action)
