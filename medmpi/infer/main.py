"""From the command line of ``medmpi infer`` to an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmpi.garbage import settle
from medmpi.infer.options import Options, build_parser, parse
from medmpi.train.main import launch

if TYPE_CHECKING:
    from medmpi.infer.predictor import Predictor
    from medmpi.parallel import World


def main(argv: Sequence[str] | None = None, prog: str = "python -m medmpi.infer") -> int:
    """Classifies or segments images and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return launch(words, lambda: build_parser(prog).format_help(), lambda: parse(words, prog), run)


def run(options: Options, world: World) -> None:
    """Loads the model on every rank and does what was asked for. Collective."""
    from medmpi import __version__
    from medmpi import kernels as K
    from medmpi.infer.files import printer, run_files
    from medmpi.infer.predictor import Predictor
    from medmpi.train.device import take
    from medmpi.train.failure import Failure, on_root, together

    if options.threads is not None:
        K.set_threads(options.threads)
    say = printer(world, quiet=options.quiet)
    together(world, lambda: take(options.device, options.precision, world.local_rank))
    predictor = together(
        world,
        lambda: Predictor(
            options.run,
            options.checkpoint,
            temperature=options.temperature,
            threshold=options.threshold,
            device=options.device,
        ),
    )
    settle()  # the model too
    h, w = predictor.spec.image_size
    say(
        f"medmpi infer {__version__}: {predictor.spec.name} for {predictor.spec.task} of {h}x{w}x"
        f"{predictor.spec.channels} into {len(predictor.classes)} classes, {predictor.file}; "
        f"{world.size} rank{'s' * (world.size > 1)}, {K.threads()} thread{'s' * (K.threads() > 1)} each"
    )
    say_decision(predictor, say)
    if options.measure:
        from medmpi.infer.measure import run_measure

        run_measure(options, world, predictor, say)
        return

    def make_folder() -> None:
        assert options.out is not None
        out = Path(options.out).expanduser()
        try:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / ".write-test"
            probe.write_bytes(b"medmpi")
            probe.unlink()
        except OSError as error:
            raise Failure(f"cannot write to {out}: {error.strerror or error}") from None
        for stale in out.rglob(".*.tmp*"):
            stale.unlink(missing_ok=True)

    on_root(world, make_folder)
    if options.inputs:
        run_files(options, world, predictor, say)
    else:
        from medmpi.infer.stream import run_stream

        run_stream(options, world, predictor, say)


def say_decision(predictor: Predictor, say: Callable[[str], None]) -> None:
    """How probabilities become classes, where it is not the plain way."""
    d = predictor.decision
    if predictor.segments:
        return
    if d.temperature != 1:
        say(f"probabilities are calibrated: logits are divided by {d.temperature:.4g}")
    if d.threshold is not None:
        say(f"{predictor.classes[1]} is called from a probability of {d.threshold:.4g} on")
