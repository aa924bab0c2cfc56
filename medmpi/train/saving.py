"""From the ranks' memory to a checkpoint and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import __version__, nn
from medmpi.kernels import to_host
from medmpi.nn import checkpoint as files
from medmpi.parallel.arrays import gather_arrays, hand_out
from medmpi.train.checkpoints import Checkpoints, Restored
from medmpi.train.failure import Failure, on_root, together
from medmpi.train.metrics import Scores
from medmpi.train.state import Position, Sums, pack, share_of_sums, unpack
from medmpi.train.writer import Writer

if TYPE_CHECKING:
    from medmpi.parallel import World
    from medmpi.train.job import Job

Arrays = dict[str, NDArray[Any]]
_RANK = "rank{}/"  # of a replica, whose running statistics are its own
_WEIGHTS = "weights/"  # while parts are under way: not in the files


@dataclass
class Resumed:
    """What a run goes on from."""

    position: Position
    sums: Sums
    notes: list[str]


class Saver:
    """Saves and restores a Job. All methods are collective; rank 0 alone touches files.

    Whatever the grid, a checkpoint is the whole model's: rank 0 collects the parts of the stages, and every rank takes
    its part of it when it resumes, with any other grid. Rank 0 writes in a thread while training goes on.
    """

    def __init__(self, job: Job, world: World, checkpoints: Checkpoints, event: Callable[..., None]) -> None:
        self._job, self._world, self._files, self._event = job, world, checkpoints, event
        self._writer = Writer()

    def save(self, position: Position, sums: Sums, scores: Scores | None, *, best: bool, wait: bool = False) -> None:
        """Takes weights and state of this moment and begins to write them; best=True makes them best.safetensors too.

        With ``wait`` the files are complete on return. Failure if these or those of the save before cannot be written.
        """
        job, world, grid = self._job, self._world, self._job.grid
        self.finish()
        all_sums = world.gather(sums)
        mine: Arrays = {}
        if job.statistics is None and grid.data.size > 1:
            mine |= {
                _RANK.format(grid.replica) + name: to_host(value).copy() for name, value in _buffers(job.graph).items()
            }
        with averaged(job.graph, grid.data, active=job.statistics is None):
            if grid.replica == 0 and grid.tile == 0:
                mine |= {_WEIGHTS + name: value for name, value in files.state_dict(job.graph).items()}
                mine |= {
                    f"optimizer/{name}": to_host(value).copy() for name, value in job.optimizer.state_dict().items()
                }
                mine |= {f"adapt/{name}": value.copy() for name, value in job.adapt.arrays().items()}
            found = gather_arrays(world, mine, "collect the checkpoint")
        if found is not None:
            whole = {name: value for part in found for name, value in part.items()}
            metadata = self._metadata(position, all_sums or [], scores)
            moment = replace(position)  # the training's own moves on while this one is written
            self._writer.start(lambda: self._write(moment, whole, metadata, best))
        if wait:
            self.finish()

    def _metadata(self, position: Position, sums: list[Sums], scores: Scores | None) -> dict[str, str]:
        job, grid = self._job, self._job.grid
        run = {
            "ranks": self._world.size,
            "replicas": grid.replicas,
            "grid": grid.describe(),
            "micro_batches": job.pipeline.micro_batches,
            "model": job.signature(),
        }
        metadata = pack(position, sums, {"rate": job.rate.state_dict(), "adapt": job.adapt.state_dict()}, run)
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
        return metadata

    def _write(self, position: Position, arrays: Arrays, metadata: dict[str, str], best: bool) -> None:
        weights = _under(_WEIGHTS, arrays)
        state = {name: value for name, value in arrays.items() if not name.startswith(_WEIGHTS)}
        size = self._files.save(position.step, weights, state, metadata)
        if best:
            self._files.mark_best(position.step)
        self._event("checkpoint", step=position.step, epoch=position.epoch, bytes=size, best=best)

    def finish(self) -> None:
        """Waits until all files are written; Failure on all ranks if one could not be."""
        on_root(self._world, self._writer.wait)

    def close(self) -> None:
        """Lets the file that is being written come to its end, in whatever state the run is. Not collective."""
        with contextlib.suppress(Exception):
            self._writer.wait()

    def restore(self) -> Resumed | None:
        """Loads the newest good checkpoint into the job; None if there is none. Failure if it is of another model."""
        world, job, grid = self._world, self._job, self._job.grid
        kept: list[Restored] = []

        def read() -> tuple[int, dict[str, str], list[str]] | None:
            found = self._files.restore()
            if found is None:
                return None
            kept.append(found)
            return found.step, found.metadata, found.rejected

        header = on_root(world, read)
        if header is None:
            return None
        step, metadata, rejected = header
        own = _RANK.format(grid.replica)
        weights = self._hand_out(kept[0].weights if kept else None)
        state = hand_out(
            world,
            kept[0].state if kept else None,
            lambda name: name.startswith((own, "optimizer/", "adapt/")),
            "hand out the checkpoint",
        )
        kept.clear()

        def load() -> tuple[Position, list[Sums], dict[str, Any]]:
            try:
                position, stored, schedule, run = unpack(metadata)
                if run["model"] != job.signature():
                    raise ValueError(f"it holds {run['model']}, this run has {job.signature()}")
                files.load_state_dict(job.graph, weights)
                job.optimizer.load_state_dict(_under("optimizer/", state))
                job.rate.load_state_dict(schedule["rate"])
                job.adapt.load_state_dict(schedule["adapt"], _under("adapt/", state))
            except (KeyError, ValueError, files.CheckpointError) as error:
                raise Failure(f"cannot resume from {self._files.weights_path(step)}: {error}") from None
            return position, stored, run

        position, stored, run = together(world, load)
        notes = [f"checkpoint not usable, took the one before: {line}" for line in rejected]
        local = _under(own, state)
        replicas = run.get("replicas", run["ranks"])
        pieces = run.get("micro_batches", 1)
        if local and job.statistics is None and (replicas, pieces) == (grid.replicas, job.pipeline.micro_batches):
            for name, buffer in _buffers(job.graph).items():
                buffer[...] = np.ascontiguousarray(local[name])
        exactly = job.parameters.exact is not None and job.statistics is not None
        how = "bit for bit" if exactly else "but not bit for bit"
        before, now = _split(run.get("grid", "")), _split(grid.describe())
        if (run["ranks"], before) != (world.size, now):
            notes.append(f"resumed on {world.size} ranks{now} after {run['ranks']}{before}: same batches, {how}")
        if position.best_step == step:
            on_root(world, lambda: self._files.mark_best(step))  # a kill may have come between the two
        return Resumed(position, share_of_sums(stored, world.rank, world.size), notes)

    def _hand_out(self, weights: Mapping[str, NDArray[Any]] | None) -> Arrays:
        """This stage's part of rank 0's weights, and whatever belongs to no stage: it is an error later."""
        elsewhere = _names(self._job.model) - _names(self._job.graph)
        return hand_out(self._world, weights, lambda name: name not in elsewhere, "hand out the weights")

    def load_best(self) -> int:
        """The best weights into the graph; returns their epoch. The current weights if no best was ever saved."""
        self.finish()
        kept: list[dict[str, NDArray[Any]]] = []

        def read() -> dict[str, str] | None:
            found = self._files.best()
            if found is None:
                return None
            kept.append(found[0])
            return found[1]

        metadata = on_root(self._world, read)
        if metadata is None:
            return 0
        weights = self._hand_out(kept[0] if kept else None)

        def load() -> None:
            try:
                files.load_state_dict(self._job.graph, weights)
            except (KeyError, ValueError, files.CheckpointError) as error:
                raise Failure(f"cannot use {self._files.folder / 'best.safetensors'}: {error}") from None

        together(self._world, load)
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
            total = world.sum(to_host(buffer).astype(np.float64))
            buffer[...] = (total / world.size).astype(np.float32)
    try:
        yield
    finally:
        for name, buffer in buffers.items():
            buffer[...] = own[name]


def _split(grid: str) -> str:
    """`` (2 replicas x 2 stages)`` where the model is split, else nothing."""
    return f" ({grid})" if "stage" in grid or "tile" in grid else ""


def _names(graph: nn.Graph) -> set[str]:
    """Names of all parameters and buffers."""
    tables = ((node, (node.layer.parameter_specs(), node.layer.b)) for node in graph.nodes)
    return {f"{node.name}.{name}" for node, both in tables for table in both for name in table}


def _buffers(graph: nn.Graph) -> Arrays:
    return {f"{node.name}.{name}": buffer for node in graph.nodes for name, buffer in node.layer.b.items()}


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
