"""The training loop of one replica: steps, epochs, validation, checkpoints, and stopping when asked to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmpi import kernels, nn
from medmpi.data import Batch, epoch_order, global_batches
from medmpi.parallel import Account
from medmpi.parallel.timing import imbalance
from medmpi.train import step
from medmpi.train.adapt import Place
from medmpi.train.clock import Clock, bottleneck
from medmpi.train.device_step import DeviceStep, obstacle
from medmpi.train.evaluate import evaluate
from medmpi.train.failure import StopRequested
from medmpi.train.feed import feed
from medmpi.train.finite import Buffers, NonFiniteGuard
from medmpi.train.job import Job
from medmpi.train.latency import single_image_ms
from medmpi.train.metrics import Scores
from medmpi.train.progress import Progress
from medmpi.train.resources import Resources
from medmpi.train.saving import Saver, averaged
from medmpi.train.state import Position, Sums

if TYPE_CHECKING:
    from medmpi.parallel import World


@dataclass
class Hooks:
    """What the loop tells the outside: lines for the user, events for the logs, a row per epoch."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    event: Callable[..., None]
    row: Callable[[dict[str, Any], Scores | None], None]
    progress: Progress
    trace: Callable[[str], None] = lambda trace: None


class Trainer:
    """Trains a Job from a Position on. All methods are collective."""

    def __init__(self, job: Job, world: World, saver: Saver, hooks: Hooks) -> None:
        self.job, self.world, self.saver, self.hooks = job, world, saver, hooks
        self.position, self.sums = Position(), Sums()
        self._tallies: list[tuple[int, step.Tally]] = []  # of the batches of the update that is under way
        self._guard = NonFiniteGuard(world, job.grid.replica, job.parameters, hooks.warn)
        self._buffers = Buffers(job.graph, job.parameters.running)
        self._pass: Callable[..., step.Tally] = partial(step.run, job)
        if job.options.device != "cpu" and obstacle(job) is None:
            self._pass = DeviceStep(job, captured=job.options.cuda_graph).run
        # of a step's activations and gradients; between stages the moments at which arrays die depend on messages
        self._arena = kernels.Arena() if job.grid.stages == 1 else contextlib.nullcontext()
        self.clock = Clock(world, job.graph, job.options.timeline)
        self._resources = Resources(world)

    def run(self) -> None:
        """Trains until epochs, max_steps or early stopping end it. StopRequested after the checkpoint of a stop."""
        options, p = self.job.options, self.position
        limit = options.max_steps or math.inf
        try:
            while p.epoch < options.epochs and p.step < limit and not p.stopped_early:
                self._train_epoch(limit)
                self._finish_epoch()
            self._record(end=True)
        finally:
            self._resources.close()

    def _train_epoch(self, limit: float) -> None:
        options, p, split = self.job.options, self.position, self.job.dataset.splits["train"]
        order = epoch_order(len(split), options.seed, p.epoch)
        batches = global_batches(order, options.batch_size)
        self.hooks.progress.begin(p.epoch + 1, options.epochs, len(batches), p.step_in_epoch)
        transform = self.job.transform(p.epoch)
        since_checkpoint, began = 0, p.step_in_epoch
        sizes = [len(ids) for ids in batches]
        last = int(min(len(batches), p.step_in_epoch + limit - p.step))
        while p.step_in_epoch < len(batches) and p.step < limit:  # again whenever the ranks' shares have changed
            parts = [self.job.balance.part(ids) for ids in batches[p.step_in_epoch :]]
            with feed(self.job, split, [ids for _, ids in parts], transform) as loader:
                batch_of = iter(loader)
                for ids, (first, _) in zip(batches[p.step_in_epoch :], parts, strict=True):
                    self.world.place = f"epoch {p.epoch + 1}, step {p.step + 1}"
                    place = self.job.adapt.place(sizes, p.step_in_epoch, began, last)
                    # within an update, or while ranks have weights of their own, there is nothing that could be saved
                    if place.begins and self.job.local.meeting:
                        self._poll()
                    with self.clock("load a batch", "io"):
                        batch = next(batch_of)
                    loss, lr = self._step(batch, ids, first, place)
                    p.step += 1
                    p.step_in_epoch += 1
                    self._account(len(batch.ids))
                    self.hooks.progress.step(loss, lr, len(ids))
                    self._record()
                    if not place.ends:
                        continue
                    since_checkpoint += place.images
                    due = 0 < options.checkpoint_every * options.batch_size <= since_checkpoint
                    self.job.local.average(now=due or p.step_in_epoch == last)
                    if due and p.step_in_epoch < last:
                        self._save(None, best=False)
                        since_checkpoint = 0
                    if self._rebalance() or p.step >= limit:
                        break
        self.hooks.progress.end()

    def _step(self, batch: Batch, ids: NDArray[np.int64], first: int, place: Place) -> tuple[float, float]:
        """The gradients of the global batch `ids`, of which `batch` is this rank's part; at the end of its update's
        batches the update. Returns loss and rate.
        """
        job, p = self.job, self.position
        lr = job.rate(p.epoch, p.step_in_epoch) * job.adapt.gain()
        context = nn.Context(
            train=True, seed=job.options.seed, step=p.step, first_sample=first, statistics=job.statistics
        )
        part = len(ids) / place.images
        alone = job.local.active
        divisors = (job.local.divisors(job.criterion, batch) if alone else job.divisors(batch, ids)) / part
        if place.begins:
            self._buffers.keep()
            job.parameters.zero_grad()
        with self._arena, self.clock("forward and backward"):
            done = job.buckets.done if place.ends and not alone else lambda node: None
            # statistics of no images at all exist only where other ranks have some
            tally = self._pass(batch, context, divisors, done) if len(batch.ids) or not alone else step.Tally()
        tally.loss *= len(batch.ids) / len(ids) / part if alone else 1 / part
        self._tallies.append((len(ids), tally))
        if not place.ends:
            return tally.loss * len(ids) / max(len(batch.ids), 1), lr
        tallies, self._tallies = self._tallies, []
        if not alone:
            job.buckets.finish()
        norm, loss = step.norm_and_loss(job, tally.loss)
        if alone:
            if not job.local.update(norm, len(batch.ids)):
                self._buffers.restore()
                return math.nan, lr
        elif not math.isfinite(norm):
            self._buffers.restore()
            images = kernels.to_host(batch.images)
            self._guard.bad(p.step + 1, batch.ids.tolist(), images, lambda: self._again(batch, context, divisors))
            self._buffers.restore()
            self.hooks.event("not_finite", step=p.step + 1, loss=loss)
            return math.nan, lr
        else:
            self._guard.good()
            job.adapt.updated(job.parameters.grad, warm=job.rate.warm(p.epoch, p.step_in_epoch))
        if job.options.clip_norm is not None:
            nn.clip_gradients(job.parameters, job.options.clip_norm, norm=norm)
        job.optimizer.lr = lr
        with self.clock("optimizer"):
            job.update.step()
        for n, counted in tallies:
            self.sums.loss += counted.loss * n
            self.sums.images += counted.images
            self.sums.correct += counted.correct
            self.sums.predictions += counted.predictions
        return loss * len(ids) / max(len(batch.ids), 1), lr

    def _again(self, batch: Batch, context: nn.Context, divisors: NDArray[np.float64]) -> float:
        """The replica's own loss and gradient, apart from the others: to tell whose data spoilt a step."""
        alone = nn.Context(True, context.seed, context.step, context.first_sample, None)
        loss = step.run(self.job, batch, alone, divisors, lambda node: None).loss
        if self.job.parameters.exact is not None:
            self.job.parameters.exact.round()
        return loss

    def _rebalance(self) -> bool:
        """Whether the ranks' shares have changed; the loader's batches are the old ones then."""
        change = self.job.balance.adjust()
        if change is None:
            return False
        slowest = int(change.per_sample.argmax())
        self.hooks.say(
            f"balance: images per step now {' '.join(map(str, change.shares))}; rank {slowest} on "
            f"{self.world.hosts[slowest]} takes {change.per_sample.max() / change.per_sample.min():.1f} times as long "
            f"as the fastest; expected computing time per step {change.before:.3f} -> {change.after:.3f} s"
        )
        self.hooks.event("balance", step=self.position.step, shares=change.shares.tolist())
        return True

    def _account(self, samples: int | None = None) -> None:
        """Charges the time since the last call to the epoch, split by what it was spent on; steps give samples."""
        part = self.clock.lap()
        if samples is not None:
            self.job.balance.observe(samples, part.comp)
            self.sums.seconds += part.total
        for i, kind in enumerate((part.comp, part.comm, part.wait, part.io)):
            self.sums.times[i] += kind

    def _record(self, *, end: bool = False) -> None:
        """Hands over the timeline when it is complete."""
        trace = self.clock.timeline(end=end)
        if trace is not None:
            self.hooks.trace(trace)

    def _save(self, scores: Scores | None, *, best: bool, wait: bool = False) -> None:
        with self.clock("checkpoint", "io"):
            self.saver.save(self.position, self.sums, scores, best=best, wait=wait)

    def _finish_epoch(self) -> None:
        """Validation, the row of metrics, best, early stopping, schedule, checkpoint."""
        options, p = self.job.options, self.position
        whole = p.step_in_epoch == self.job.steps_per_epoch
        lr = self.job.rate(p.epoch, p.step_in_epoch - 1) * self.job.adapt.gain()
        self.world.place = f"the end of epoch {p.epoch + 1}, step {p.step}"
        with self.clock("validation"):
            scores = self.validate()
        infer_ms = single_image_ms(self.job)
        self._account()
        row = self._row(lr, scores)
        row["infer_ms"] = infer_ms
        row |= self._resources.read()
        score, loss = (scores.f1, scores.loss) if scores else (-row["train_loss"], row["train_loss"])
        better = p.is_better(score, loss)
        if better:
            p.best_score, p.best_loss, p.best_epoch, p.best_step = score, loss, p.epoch + 1, p.step
        if whole:
            p.stale = 0 if better else p.stale + 1
            self.job.rate.observe(loss)
            if (change := self.job.adapt.observe(loss)) is not None:
                self.hooks.say(change)
            p.epoch, p.step_in_epoch, self.sums = p.epoch + 1, 0, Sums()
            p.stopped_early = 0 < options.early_stopping <= p.stale
        p.seconds += row["time_s"]
        # The row first: a run killed in between resumes before it and cuts it off; the other order would lose it.
        with self.clock("row of metrics", "io"):
            self.hooks.row(row, scores)
        self._save(scores, best=better)
        if p.stopped_early:
            self.hooks.say(f"no progress for {p.stale} epochs: stopped early, best was epoch {p.best_epoch}")

    def validate(self) -> Scores | None:
        """Scores of the validation split, None if it is empty. A stop asked for meanwhile is obeyed."""
        job = self.job
        if len(job.dataset.splits["val"]) == 0:
            return None
        with averaged(job.graph, job.grid.data, active=job.statistics is None):
            return evaluate(job, "val", self.world, poll=self._poll, reading=lambda: self.clock("load a batch", "io"))

    def _row(self, lr: float, scores: Scores | None) -> dict[str, Any]:
        """The epoch's line of metrics.csv: sums over ranks, times as the mean over ranks.

        Times count from the line before: they hold the steps, validation, and the checkpoint of the epoch before.
        """
        flat = self.world.allgather(self.sums.flat())
        total = Sums.of(np.sum(flat, axis=0))
        size, p = self.world.size, self.position
        account = Account(*(t / size for t in total.times))
        seconds = total.seconds / size
        accounts = [Account(*Sums.of(f).times) for f in flat]
        advice = bottleneck(accounts, self.world.hosts, self._advice())
        if advice is not None and p.step_in_epoch == self.job.steps_per_epoch:
            self.hooks.say(advice)
        row: dict[str, Any] = {
            "epoch": p.epoch + 1,
            "step": p.step,
            "lr": lr,
            "train_loss": total.loss / total.images if total.images else math.nan,
            "train_accuracy": total.correct / total.predictions if total.predictions else math.nan,
            "images_per_s": total.images / seconds if seconds else math.nan,
            "time_s": account.total,
            "t_comp": account.comp,
            "t_comm": account.comm,
            "t_wait": account.wait,
            "t_io": account.io,
            "r_alloc": account.r_alloc,
            "r_alloc_literal": account.r_alloc_as_printed,
            "imbalance": imbalance(accounts),
            "update_images": self.job.adapt.batch,
            "noise_scale": self.job.adapt.noise_scale,
        }
        if scores is not None:
            for name in ("loss", "accuracy", "precision", "recall", "f1", "auc", "iou"):
                row[f"val_{name}"] = getattr(scores, name)
        return row

    def _advice(self) -> str:
        """What would help a rank that computes for longer than the others."""
        if self.job.balance.active:
            return "it gets less of each batch from now on"
        if self.job.grid.replicas < self.world.size:
            return "other cuts, or fewer stages or tiles, would divide the work more evenly"
        return "--balance would give it less of each batch"

    def _poll(self) -> None:
        """If any rank was asked to stop, all save the exact place and raise StopRequested."""
        if self.world.any(self.world.stop_requested()):
            self.hooks.progress.end()
            self._save(None, best=False, wait=True)
            raise StopRequested(f"epoch {self.position.epoch + 1}, step {self.position.step}")

    def poll_without_saving(self) -> None:
        """For the time after training, when the checkpoint is already there."""
        if self.world.any(self.world.stop_requested()):
            raise StopRequested(f"the end of training, step {self.position.step}")
