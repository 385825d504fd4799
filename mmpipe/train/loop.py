"""The training loop: optimizer steps, losses per labelled row, checkpoints, metrics.

One step, on every rank:

    seed the generators by (seed, step, rank)
    take `accumulate` batches            labels are counted here, before any backward pass:
    count labels per task                over micro-batches and ranks
    for each batch: forward, sum of losses / labels of the step, backward
    sum gradients over ranks, clip, update at learning_rate(step)                    (step.py)

Losses stay on the device until `log_every` steps are together; nothing else waits for it. After Ctrl-C, on any rank,
all ranks stop at the end of the same step, with a checkpoint.

A step whose loss is not finite updates nothing. When its losses are read, it is recorded with its rows. After more than
`skip_nonfinite` of them the training goes back to its last checkpoint and leaves those steps out from there, forward
pass included; after as many again it stops.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.data.ranks import is_first, world
from mmpipe.errors import TrainError
from mmpipe.models.spread import is_sharded
from mmpipe.runs import Run, open_run, update_run
from mmpipe.runs.record import append_metrics, cut_metrics, drop_checkpoints, sync_metrics
from mmpipe.train.agreement import Asked, agree
from mmpipe.train.average import Average
from mmpipe.train.balancing import make_balancing
from mmpipe.train.callbacks import StopTraining
from mmpipe.train.checkpoint import Keep, load_checkpoint, save_checkpoint, save_in_pieces, seconds_between
from mmpipe.train.distributed import from_rank_0, processes
from mmpipe.train.epochs import Epochs
from mmpipe.train.evaluate import evaluate
from mmpipe.train.interrupt import Interrupt, noted_interrupt
from mmpipe.train.nonfinite import NotFinite, not_finite_in
from mmpipe.train.optimizer import groups_of, learning_rate, make_optimizer, scheduled, set_groups
from mmpipe.train.random_numbers import seed_generators
from mmpipe.train.step import Stepper
from mmpipe.train.strategies import strategy_of
from mmpipe.train.strategy import Strategy
from mmpipe.train.tasks import Task
from mmpipe.train.unread import Unread
from mmpipe.train.writing import Writing
from mmpipe.train.zero import STAGES
from mmpipe.wording import how_many

if TYPE_CHECKING:
    from mmpipe.train.trainer import Trainer

_log = logging.getLogger(__name__)
KEYS_SHOWN = 5


class Loop:
    """One training of one run, from its newest checkpoint or from the start.

    Args:
        trainer: configuration.
        run: where it is recorded.
        model: on its device, with fitted buffers.
        tasks: what to learn.
        train: private to this loop, at epoch 0.
        val: private to this loop, or None.
        mesh: of processes that the model is spread over; None where each has it whole.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        model: nn.Module,
        tasks: tuple[Task, ...],
        train: DataLoader,
        val: DataLoader | None,
        mesh: Any = None,
    ) -> None:
        self.config = trainer
        self.run = run
        self.tasks = tasks
        self.loader = train
        self.val = val
        self.device = train.device
        self.callbacks = trainer.callbacks if is_first() else ()
        balancing = make_balancing(trainer.balancing, tasks).to(self.device)
        self.strategy: Strategy = strategy_of(
            trainer.parallel, mesh, device=self.device, precision=trainer.precision, balancing=balancing,
            clip=trainer.clip,
        )  # fmt: skip
        self.average = None if trainer.ema is None else Average(model, decay=trainer.ema)
        self.parts: dict[str, nn.Module] = {'balancing': balancing}  # beside the model in a checkpoint
        if self.average is not None:
            self.parts['average'] = self.average.model
        self.keep = Keep(newest=trainer.keep_checkpoints, best=trainer.keep_best, every=trainer.keep_every)
        self.model = model
        self.strategy.prepare(model)
        self.optimizer = make_optimizer(
            nn.ModuleDict({'model': model, 'balancing': balancing}),
            lr=trainer.lr,
            weight_decay=trainer.weight_decay,
            layer_decay=trainer.layer_decay,
            frozen_too=trainer.unfreeze is not None,
            factory=trainer.optimizer,
        )
        self.strategy.adopt(self.optimizer)
        self.scheduler = None if trainer.scheduler is None else scheduled(trainer.scheduler, self.optimizer)
        self.stepper = Stepper(
            self.model,
            tasks,
            self.optimizer,
            balancing=balancing,
            strategy=self.strategy,
            device=self.device,
            precision=trainer.precision,
            clip=trainer.clip,
            channels_last=trainer.channels_last,
        )
        self.epochs = Epochs(train, epochs=trainer.epochs, accumulate=trainer.accumulate, max_steps=trainer.max_steps)
        self.total = self.epochs.total
        self.step = 0
        self.metrics: dict[str, Any] = dict(run.metrics)
        # Over all ranks: sum of losses and labelled rows since the epoch began, per task.
        self.sums = [[0.0, 0.0] for _ in tasks]  # of the epoch, as far as read: losses and labelled rows per task
        self.unread = Unread([task.name for task in tasks])
        self.recent: dict[str, float] = {}
        self.not_finite = NotFinite(trainer.skip_nonfinite)
        auto = trainer.sharded_checkpoints == 'auto'
        in_pieces = trainer.parallel.sharding in STAGES or (is_sharded(model) and trainer.parallel.sharding != 'yafsdp')
        self.in_pieces = in_pieces if auto else bool(trainer.sharded_checkpoints)
        self.writing = Writing()
        self.saved_at = time.monotonic()
        self.save_took = 0.0
        self.waited_s = self.trained_s = 0.0  # in the epochs of this process
        self.interrupt = Interrupt()
        self.asked_enough = False  # by a callback
        self.stop_agreed = self.enough = self.due_agreed = False  # by all ranks; the last, a checkpoint by time
        sharded = mesh is not None and hasattr(model, 'optional')
        self.optional: list[tuple[str, bool, list[nn.Parameter]]] = model.optional() if sharded else []  # type: ignore[operator]

    def train(self) -> Run:
        """Train to the end.

        Returns:
            The finished run, as it is on the disk.

        Raises:
            TrainError: a loss or a weight is no longer finite, or there is no batch to train on.
            KeyboardInterrupt: Ctrl-C was pressed; the run goes on from there when it is resumed.
        """
        if self.total == 0:
            raise TrainError(
                f'There is no batch to train on: {len(self.loader.rows)} rows, batch_size {self.loader.batch_size} on '
                f'{world()[1]} ranks, drop_last. Use a smaller batch_size, or drop_last=False.'
            )
        try:
            with noted_interrupt() as self.interrupt:
                return self._train()
        finally:
            self.writing.close()

    def _train(self) -> Run:
        self._restore()
        if self.step < self.total:  # else it had finished, and nothing more was asked for
            self._record(status='running', trainer=self.config.settings())
            self._tell('on_start', self.run)
            try:
                while self.step < self.total and not self.enough:
                    try:
                        self._epoch()
                    except _GoBack:
                        self._go_back()
            except BaseException as error:
                status = 'failed' if isinstance(error, Exception) else 'interrupted'
                self._record(status=status, error=f'{type(error).__name__}: {error}')
                raise
        waited = {'data_wait_percent': round(100 * self.waited_s / self.trained_s, 1)} if self.trained_s else {}
        run = self._record(status='finished', metrics=self.metrics, step=self.step, error=None, **waited)
        self._tell('on_end', run)
        # The other ranks wait for the last checkpoint and record, so that they too return a run that can be used.
        path = from_rank_0(str(run.path))
        return run if is_first() else open_run(path)

    def _tell(self, what: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, what)(*arguments)
            except StopTraining as why:
                _log.info('run %s ends after step %d: %s', self.run.id, self.step, why)
                self.asked_enough = True

    def _epoch(self) -> None:
        """From where the loader stands to the end of the epoch, or of the training."""
        epoch = self.epochs.of(self.step)
        last = min(self.total, self.epochs.end(epoch))
        self._unfreeze(epoch)
        self.model.train()
        batches = iter(self.loader)
        began, first = time.monotonic(), self.step
        while self.step < last:
            micro = list(itertools.islice(batches, self.config.accumulate))
            if self.step not in self.not_finite.left_out:
                self._take(micro)
            self.step += 1
            self._report(epoch, time.monotonic() - began, self.step - first)
            if self.step < last and (self._stopping() or self._checkpoint_due()):
                self._save(whole=self.enough)
                self._stop_if_asked()
                if self.enough:
                    return
        self.waited_s += self.loader.waited_s
        self.trained_s += time.monotonic() - began
        if last == self.epochs.end(epoch):
            self.loader.set_epoch(epoch + 1)
        self._end_epoch(epoch)
        evaluated = self.keep.best is not None and bool(self.metrics)
        if self.step == self.total or self._stopping() or self._checkpoint_due() or evaluated:
            self._save(whole=self.step == self.total or self.enough or evaluated)
            self._stop_if_asked()

    def _take(self, micro: list[dict[str, Any]]) -> None:
        """One step of the model, without looking at what it gives."""
        config = self.config
        # All that is random in a step is a function of its number, so a checkpoint stores no generator.
        seed_generators(self.device, config.seed, self.step, self.strategy.draws)
        factor = None
        if self.scheduler is None:
            factor = learning_rate(
                self.step, peak=1.0, schedule=config.schedule, warmup=config.warmup, total=self.total
            )
        # Clocks differ, and a checkpoint of a model in parts needs all processes: the first one says when.
        asked = Asked(self.interrupt.asked, self.asked_enough, save=is_first() and self._time_to_save())
        agreed = agree(micro, self.tasks, asked, optional=self.optional, device=self.device)
        self.stop_agreed, self.enough, self.due_agreed = dataclasses.astuple(agreed.asked)
        taken = self.stepper(micro, agreed.labels, factor=factor, even=agreed.even, unused=agreed.unused)
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update()
        self.unread.add(self.step + 1, taken)

    def _unfreeze(self, epoch: int) -> None:
        """What trains from this epoch on."""
        due = [each for each in self.config.unfreeze or {} if each <= epoch]
        if due:
            self.model.freeze(self.config.unfreeze[max(due)])  # type: ignore[operator,index]
        self.stepper.refresh()

    def _stopping(self) -> bool:
        return self.enough or (self.interrupt.asked if processes() == 1 else self.stop_agreed)

    def _stop_if_asked(self) -> None:
        if self._stopping() and not self.enough:
            self.writing.wait()
            from_rank_0('')  # a launcher may kill all ranks when the first one leaves, so they wait for the checkpoint
            raise KeyboardInterrupt(f'run {self.run.id} is saved after step {self.step} of {self.total}')

    def _report(self, epoch: int, seconds: float, steps: int) -> None:
        if self.config.progress is not None:
            note = getattr(self.config.progress, 'note', None)
            if note is not None and seconds:
                # The host runs ahead of an accelerator, and may wait for data while that still computes.
                most = '' if self.device.type == 'cpu' else 'at most '
                losses = ''.join(f', {name} {loss:.3g}' for name, loss in self.recent.items())
                waiting = f'{most}{100 * self.loader.waited_s / seconds:.0f} % waiting for data'
                note(f'{steps / seconds:,.1f} steps/s, {waiting}{losses}')
            done = epoch * self.loader.batches.end + self.loader.state_dict()['consumed']
            self.config.progress('train', done, self.epochs.samples(), 'rows')
        if self.step % self.config.log_every == 0:
            self._write_losses()

    def _end_epoch(self, epoch: int) -> None:
        """One line of metrics.jsonl: losses of the epoch per task, and the evaluation where one is due."""
        self._write_losses()
        totals = zip(self.tasks, self.sums, strict=True)
        losses = {task.name: total / count if count else None for task, (total, count) in totals}
        line: dict[str, Any] = {'step': self.step, 'epoch': epoch, 'train': losses}
        due = self.step == self.total or (epoch + 1) % self.config.evaluate_every == 0
        found: dict[str, Any] = {}
        if self.val is not None and due:
            with nullcontext() if self.average is None else self.average.applied():
                call, precision = self.strategy.called(self.model), self.config.precision
                found = evaluate(self.model, self.val, tasks=self.tasks, precision=precision, call=call)
            found = _finite_or_none(found)
            self.metrics = line['val'] = found
            self.model.train()
        self._append([line])
        self.sums = [[0.0, 0.0] for _ in self.tasks]
        self._tell('on_epoch', self.run, epoch, found)

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every
        by_step = every is not None and self.step % every == 0
        return by_step or (self._time_to_save() if processes() == 1 else self.due_agreed)

    def _time_to_save(self) -> bool:
        pause = seconds_between(self.config.checkpoint_seconds, self.save_took)
        return time.monotonic() - self.saved_at > pause

    def _write_losses(self) -> None:
        """Losses since the last line, as another; this waits for the device."""
        read = self.unread.read()
        self._look_at(read.bad)
        for kept, more in zip(self.sums, read.sums.values(), strict=False):  # nothing was read where there is no step
            kept[0], kept[1] = kept[0] + more[0], kept[1] + more[1]
        if read.mean is not None:
            self.recent = read.by_task
            self._append([{'step': read.steps[-1], 'loss': read.mean, 'tasks': read.by_task}])
            self._tell('on_losses', self.run, read.steps[-1], read.by_task)

    def _look_at(self, bad: Mapping[int, list[str]]) -> None:
        """Record steps that were not finite, and go back where there are too many of them.

        Raises:
            TrainError: there were too many before as well, or there is nothing to go back to.
        """
        new = {step: names for step, names in bad.items() if step not in self.not_finite.skipped}
        for step, names in new.items():
            self.not_finite.skipped.append(step)
            keys = self.epochs.keys(step - 1)
            self._append([{'step': step, 'not_finite': names, 'keys': keys}])
            more = f' and {len(keys) - KEYS_SHOWN} more' if len(keys) > KEYS_SHOWN else ''
            what = (
                f'the loss of {", ".join(names) or "the model"} is not finite at step {step}, whose rows are '
                f'{", ".join(map(repr, keys[:KEYS_SHOWN]))}{more}'
            )
            _log.warning('run %s: %s; it changed nothing', self.run.id, what)
            if self.not_finite.too_many:
                if self._may_go_back():
                    raise _GoBack
                since = ' since it went back to a checkpoint' if self.not_finite.left_out else ''
                skipped = how_many(len(self.not_finite.skipped), 'such step')
                raise TrainError(f'Run {self.run.id}: {what}. It left out {skipped}{since}. {self._ways_out()}')

    def _may_go_back(self) -> bool:
        """Whether there is something to leave out, and where to go."""
        return self.not_finite.may_leave_out and self._newest_checkpoint() is not None

    def _go_back(self) -> None:
        """To the last checkpoint; the steps that were not finite are not taken from there."""
        wrong = self.not_finite.skipped
        self._restore()
        self.not_finite.leave_out(wrong)
        self._append([{'step': self.step, 'leaves_out': step, 'keys': self.epochs.keys(step - 1)} for step in wrong])
        _log.warning(
            'run %s: went back to its checkpoint of step %d; %s from there will be left out',
            self.run.id, self.step, how_many(len(self.not_finite.left_out), 'step'),
        )  # fmt: skip

    def _save(self, *, whole: bool) -> None:
        """A checkpoint; of a model in parts with `whole` weights where they are to be used, and else in pieces."""
        state = {
            'step': self.step,
            'loader': self.loader.state_dict(),
            'sums': self.sums,
            'unread': self.unread.state(),  # waits for steps that the device has not done: no cost of the checkpoint
            'metrics': self.metrics,
            **self.not_finite.state(),
            'scaler': self.stepper.scaler.state_dict(),
            'scheduler': None if self.scheduler is None else self.scheduler.state_dict(),
            'groups': groups_of(self.optimizer),
        }
        began = time.monotonic()
        self._check_weights()
        if self.average is not None:
            self.average.settle()
        if is_first():
            sync_metrics(self.run)
        kept: dict[str, Any] = {'parts': self.parts, 'keep': self.keep, 'owned': self.strategy.owned}
        with self.strategy.whole(self.model):
            if self.in_pieces:
                save_in_pieces(self.run, self.model, self.optimizer, state, writing=self.writing, whole=whole, **kept)
            elif is_first() or is_sharded(self.model):
                save_checkpoint(self.run, self.model, self.optimizer, state, **kept)
        self.saved_at = time.monotonic()
        self.save_took = self.saved_at - began
        self.due_agreed = False

    def _check_weights(self) -> None:
        """A checkpoint that nothing can be trained on from would take the place of one that is good.

        Raises:
            TrainError: a weight is not finite, and there is nothing to go back to.
        """
        wrong = not_finite_in(self.model)
        if not wrong:
            return
        # Which steps did it? Those that were not finite; they leave statistics of BatchNorm behind, for one.
        self._look_at(self.unread.read().bad)
        if self._may_go_back():
            raise _GoBack
        more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        raise TrainError(
            f'Run {self.run.id}: {wrong[0]}{more} of the model is not finite after step {self.step}. {self._ways_out()}'
        )

    def _ways_out(self) -> str:
        kept = self.run.newest_checkpoint()
        steps = (
            'It has no checkpoint yet' if kept is None else f'Its last checkpoint, of step {int(kept.name)}, is good'
        )
        return f'Lower lr={self.config.lr}, set clip=1.0, or look for extreme values in the inputs. {steps}.'

    def _newest_checkpoint(self) -> Path | None:
        """The same on all ranks, whatever is being written."""
        self.writing.wait()
        found = self.run.newest_checkpoint() if is_first() else None
        name = from_rank_0('' if found is None else str(found))
        return Path(name) if name else None

    def _restore(self) -> None:
        folder = self._newest_checkpoint()
        if folder is not None:
            with self.strategy.whole(self.model, loads=True):
                state = load_checkpoint(
                    self.run, folder, self.model, self.optimizer, parts=self.parts, owned=self.strategy.owned
                )
            self.step = state['step']
            self.loader.load_state_dict(state['loader'])
            self.sums = state['sums']
            self.unread.load(state['unread'], self.device)
            self.metrics = state['metrics']
            self.not_finite.load(state)
            if state['scaler']:
                self.stepper.scaler.load_state_dict(state['scaler'])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state['scheduler'])
            set_groups(self.optimizer, state['groups'])
        if is_first():
            cut_metrics(self.run, self.step)
            drop_checkpoints(self.run, **dataclasses.asdict(self.keep) | {'best': self.keep.best is not None})

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if is_first():
            append_metrics(self.run, lines)

    def _record(self, **changes: Any) -> Run:
        if is_first():
            self.run = update_run(self.run, **changes)
        return self.run


class _GoBack(Exception):
    """Too many steps were not finite."""


def _finite_or_none(value: Any) -> Any:
    """NaN is not JSON."""
    if isinstance(value, Mapping):
        return {key: _finite_or_none(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
