"""One training run from settings to report, on all ranks."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmpi import __version__
from medmpi import kernels as K
from medmpi.files import write_whole
from medmpi.train import folder as folders
from medmpi.train.banner import banner
from medmpi.train.checkpoints import Checkpoints
from medmpi.train.config import to_toml
from medmpi.train.evaluate import Outputs, evaluate
from medmpi.train.failure import StopRequested, on_root
from medmpi.train.initial import initialise_from
from medmpi.train.job import Job, build_job
from medmpi.train.log import MetricsLog, RankLog, finite
from medmpi.train.metrics import Scores
from medmpi.train.options import Options
from medmpi.train.progress import choose, clock
from medmpi.train.saving import Resumed, Saver
from medmpi.train.trainer import Hooks, Trainer

if TYPE_CHECKING:
    from medmpi.parallel import World


@dataclass
class Outcome:
    """A finished run: its parts with the best weights, and the test scores as in test.json (None without a split)."""

    job: Job
    folder: Path
    epoch: int
    test: dict[str, Any] | None
    seconds: float


def run(options: Options, world: World) -> Outcome:
    """Trains, evaluates the test split with the best weights and writes the report. Collective.

    Failure where something a user can mend is wrong; StopRequested after a signal, with the checkpoint written.
    """
    started = time.monotonic()
    folder = Path(on_root(world, lambda: str(folders.choose(options))))
    say = _printer(world, quiet=options.quiet)
    with RankLog(folder, world.rank) as log:
        job = build_job(options, world)
        saver = Saver(job, world, Checkpoints(folder / "checkpoints"), log.event)
        for line in banner(job, world, folder):
            say(line)
        log.event(
            "start", version=__version__, ranks=world.size, node=world.node, pid=os.getpid(), options=asdict(options),
            kernels=K.backend(), folder=os.getcwd(),
        )  # fmt: skip
        resumed = saver.restore() if options.resume else None
        if options.init is not None and resumed is None:
            lines, warning = initialise_from(options.init, job, world)
            for line in lines:
                say(line)
            if warning is not None:
                _printer(world, stream=sys.stderr, head="medmpi: warning: ")(warning)
        metrics = _open_files(folder, job, world, resumed)
        hooks = Hooks(
            say=say,
            warn=_printer(world, stream=sys.stderr, head="medmpi: warning: "),
            event=log.event,
            row=_row_writer(metrics, world, say, log, job.options),
            progress=choose(world.rank, options.quiet),
            trace=lambda trace: write_whole(folder / "timeline.json", trace),
        )
        for line in job.dataset.skipped:
            hooks.warn(f"left out {line}")
        log.event("data", described=job.dataset.describe(), skipped=list(job.dataset.skipped))
        trainer = Trainer(job, world, saver, hooks)
        if resumed is not None:
            trainer.position, trainer.sums = resumed.position, resumed.sums
            _tell_resumed(resumed, job, hooks)
        elif options.resume:
            say(f"no checkpoint of a run in {folder / 'checkpoints'}: the run begins at its start")
        try:
            trainer.run()
            epoch, test = _finish(trainer, folder, world, say, started)
        except StopRequested as request:
            log.event("stopped", where=str(request))
            raise
        finally:
            saver.close()
            if metrics is not None:
                metrics.close()
        log.event("done", seconds=time.monotonic() - started)
    return Outcome(job, folder, epoch, test, trainer.position.seconds)


def _open_files(folder: Path, job: Job, world: World, resumed: Resumed | None) -> MetricsLog | None:
    """config.toml and the metrics files, on rank 0."""

    def make() -> MetricsLog:
        remarks = [f"medmpi {__version__}, {world.size} ranks, {world.library}", job.dataset.describe()]
        write_whole(folder / "config.toml", to_toml(job.options, remarks))
        position = resumed.position if resumed is not None else None
        return MetricsLog(
            folder, finished_epochs=position.epoch if position else 0, step=position.step if position else 0
        )

    kept: list[MetricsLog] = []
    on_root(world, lambda: kept.append(make()))
    return kept[0] if kept else None


def _row_writer(metrics: MetricsLog | None, world: World, say: Any, log: RankLog, options: Options) -> Any:
    def write(row: dict[str, Any], scores: Scores | None) -> None:
        extra = (
            {} if scores is None else {"val_per_class": scores.per_class, "val_confusion": scores.confusion.tolist()}
        )
        on_root(world, lambda: None if metrics is None else metrics.row(row, extra))
        log.event("epoch", **{name: row.get(name) for name in ("epoch", "step", "time_s")})
        parts = [f"epoch {row['epoch']}/{options.epochs}", f"train loss {row['train_loss']:.4f}"]
        parts.append(f"accuracy {row['train_accuracy']:.4f}")
        if scores is not None:
            parts.append(f"| validation loss {scores.loss:.4f} accuracy {scores.accuracy:.4f} f1 {scores.f1:.4f}")
            parts += [f"auc {scores.auc:.4f}"] if scores.auc == scores.auc else [f"iou {scores.iou:.4f}"]
        parts.append(f"| lr {row['lr']:.4g} {row['images_per_s']:.1f} images/s {clock(row['time_s'])}")
        say(" ".join(parts))

    return write


def _tell_resumed(resumed: Resumed, job: Job, hooks: Hooks) -> None:
    p = resumed.position
    for note in resumed.notes:
        hooks.warn(note)
    lr = job.rate(p.epoch, p.step_in_epoch) * job.adapt.gain()
    where = f"epoch {p.epoch + 1} after {p.step_in_epoch} of {job.steps_per_epoch} steps"
    if p.epoch >= job.options.epochs:
        where = f"the end of epoch {p.epoch}, nothing left to train"
    best = f", best so far epoch {p.best_epoch}" if p.best_epoch else ""
    hooks.say(f"resumed at {where}: step {p.step}, lr {lr:.4g}{best}")
    hooks.event("resumed", step=p.step, epoch=p.epoch, step_in_epoch=p.step_in_epoch, lr=lr)


def _finish(
    trainer: Trainer, folder: Path, world: World, say: Any, started: float
) -> tuple[int, dict[str, Any] | None]:
    """The test split with the epoch that validation chose, test.json and the report. The epoch and the test scores."""
    job = trainer.job
    times = trainer.clock.table()
    on_root(world, lambda: _write_json(folder / "timing.json", times))
    epoch = trainer.saver.load_best()
    test: dict[str, Any] | None = None
    outputs: dict[str, Outputs] = {}
    if job.options.report and job.dataset.task == "classification" and len(job.dataset.splits["val"]):
        evaluate(job, "val", world, poll=trainer.poll_without_saving, outputs=outputs)  # thresholds, temperature
    if len(job.dataset.splits["test"]):
        scores = evaluate(job, "test", world, poll=trainer.poll_without_saving, outputs=outputs)
        test = {"epoch": epoch, "split": "test", "classes": list(job.dataset.classes), **asdict(scores)}
        test["confusion"] = scores.confusion.tolist()
        on_root(world, lambda: _write_json(folder / "test.json", test))
        names = ("loss", "accuracy", "precision", "recall", "f1", "auc" if scores.auc == scores.auc else "iou")
        line = " ".join(f"{name} {getattr(scores, name):.4f}" for name in names)
        _printer(world)(f"test ({scores.samples} samples, weights of epoch {epoch}): {line}")

    def report() -> None:
        from medmpi.train.summary import summarise

        for line in summarise(job, world, folder, test, trainer.position, outputs):
            _printer(world)(line)

    if job.options.report:
        on_root(world, report)
    result = folder / ("report.html" if job.options.report else "metrics.csv")
    say(f"results in {result}; {clock(time.monotonic() - started)} in all")
    return epoch, test


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(finite(content), indent=1) + "\n")


def _printer(world: World, *, quiet: bool = False, stream: Any = None, head: str = "") -> Any:
    def say(line: str) -> None:
        if world.rank == 0 and not quiet:
            print(head + line, file=stream or sys.stdout, flush=True)

    return say
