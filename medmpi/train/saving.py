"""From the ranks' memory to a checkpoint and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import __version__, nn
from medmpi.nn import checkpoint as files
from medmpi.train.checkpoints import Checkpoints, Restored
from medmpi.train.failure import Failure, on_root
from medmpi.train.metrics import Scores
from medmpi.train.state import Position, Sums, pack, share_of_sums, unpack

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job

Arrays = dict[str, NDArray[Any]]
_RANK = "rank{}/"


@dataclass
class Resumed:
    """What a run goes on from."""

    position: Position
    sums: Sums
    notes: list[str]


class Saver:
    """Saves and restores a Job. All methods are collective; rank 0 alone touches files."""

    def __init__(self, job: Job, world: World, checkpoints: Checkpoints, event: Callable[..., None]) -> None:
        self._job, self._world, self._files, self._event = job, world, checkpoints, event

    def save(self, position: Position, sums: Sums, scores: Scores | None, *, best: bool) -> None:
        """Writes weights and state of this moment; best=True also makes them best.safetensors."""
        job, world = self._job, self._world
        local = _buffers(job.graph) if job.statistics is None and world.size > 1 else {}
        gathered = world.gather((sums, local))
        with averaged(job.graph, world, active=job.statistics is None):
            on_root(world, lambda: self._write(position, gathered or [], scores, best))

    def _write(self, position: Position, ranks: list[tuple[Sums, Arrays]], scores: Scores | None, best: bool) -> None:
        job = self._job
        state: Arrays = {f"optimizer/{name}": value for name, value in job.optimizer.state_dict().items()}
        for rank, (_, local) in enumerate(ranks):
            state |= {_RANK.format(rank) + name: value for name, value in local.items()}
        run = {"ranks": self._world.size, "model": job.signature()}
        metadata = pack(position, [sums for sums, _ in ranks], job.rate.state_dict(), run)
        metadata |= {
            "medmpi.version": __version__,
            "epoch": str(position.epoch),
            "classes": "\n".join(job.dataset.classes),
            **job.spec().to_metadata(),
        }
        if scores is not None:
            # The finished epoch this belongs to: after a partial one (max_steps) the next number.
            epoch = position.epoch + (position.step_in_epoch > 0)
            metadata |= {"epoch": str(epoch), "val_f1": repr(scores.f1), "val_loss": repr(scores.loss)}
        size = self._files.save(position.step, files.state_dict(job.graph), state, metadata)
        if best:
            self._files.mark_best(position.step)
        self._event("checkpoint", step=position.step, epoch=position.epoch, bytes=size, best=best)

    def restore(self) -> Resumed | None:
        """Loads the newest good checkpoint into the job; None if there is none. Failure if it is of another model."""
        world, job = self._world, self._job
        found: Restored | None = on_root(world, self._files.restore)
        if found is None:
            return None
        try:
            position, stored, schedule, run = unpack(found.metadata)
            if run["model"] != job.signature():
                raise ValueError(f"it holds {run['model']}, this run has {job.signature()}")
            files.load_state_dict(job.graph, found.weights)
            job.optimizer.load_state_dict(_under("optimizer/", found.state))
            job.rate.load_state_dict(schedule)
        except (KeyError, ValueError, files.CheckpointError) as error:
            raise Failure(f"cannot resume from {self._files.weights_path(found.step)}: {error}") from None
        notes = [f"checkpoint not usable, took the one before: {line}" for line in found.rejected]
        local = _under(_RANK.format(world.rank), found.state)
        if run["ranks"] != world.size:
            exactly = job.parameters.exact is not None and job.statistics is not None
            how = "same batches, " + ("bit for bit" if exactly else "but not bit for bit")
            notes.append(f"resumed on {world.size} ranks after {run['ranks']}: {how}")
        elif local and job.statistics is None:
            for name, buffer in _buffers(job.graph).items():
                buffer[...] = local[name]
        if position.best_step == found.step:
            on_root(world, lambda: self._files.mark_best(found.step))  # a kill may have come between the two
        return Resumed(position, share_of_sums(stored, world.rank, world.size), notes)

    def load_best(self) -> int:
        """The best weights into the graph; returns their epoch. The current weights if no best was ever saved."""
        found = on_root(self._world, self._files.best)
        if found is None:
            return 0
        weights, metadata = found
        try:
            files.load_state_dict(self._job.graph, weights)
        except (KeyError, ValueError, files.CheckpointError) as error:
            raise Failure(f"cannot use {self._files.folder / 'best.safetensors'}: {error}") from None
        return int(metadata.get("epoch", "0"))


@contextlib.contextmanager
def averaged(graph: nn.Graph, world: World, *, active: bool) -> Iterator[None]:
    """Inside, running statistics are the mean over ranks; afterwards each rank has its own again.

    Without synchronised statistics every rank has seen other samples: one model for evaluation and files is their mean.
    """
    if not active or world.size == 1:
        yield
        return
    buffers = _buffers(graph)
    own = {name: buffer.copy() for name, buffer in buffers.items()}
    for buffer in buffers.values():
        if buffer.dtype.kind == "f":
            total = world.sum(buffer.astype(np.float64))
            buffer[...] = total / world.size
    try:
        yield
    finally:
        for name, buffer in buffers.items():
            buffer[...] = own[name]


def _buffers(graph: nn.Graph) -> Arrays:
    return {f"{node.name}.{name}": buffer for node in graph.nodes for name, buffer in node.layer.b.items()}


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
