"""The training loop: optimizer steps, losses per labelled row, checkpoints, metrics.

One step, on every rank:

    seed the generators by (seed, step, rank)
    take `accumulate` batches            labels are counted here, before any backward pass:
    count labels per task                over micro-batches and ranks
    for each batch: forward, sum of losses / labels of the step, backward
    sum gradients over ranks, clip, AdamW at learning_rate(step)

Losses stay on the device until `log_every` steps are together; nothing else waits for it. After Ctrl-C, on any rank,
all ranks stop at the end of the same step, with a checkpoint.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmpipe.data.loader import DataLoader, world
from mmpipe.errors import TrainError
from mmpipe.runs import Run, open_run, update_run
from mmpipe.runs.record import append_metrics, cut_metrics, drop_checkpoints, sync_metrics
from mmpipe.train.checkpoint import load_checkpoint, save_checkpoint, seconds_between
from mmpipe.train.distributed import from_rank_0, same_on_all, sum_gradients, sum_over_ranks
from mmpipe.train.evaluate import evaluate, mask_of, target_stds
from mmpipe.train.interrupt import Interrupt, noted_interrupt
from mmpipe.train.optimizer import learning_rate, make_optimizer
from mmpipe.train.random_numbers import seed_generators
from mmpipe.train.tasks import Task

if TYPE_CHECKING:
    from mmpipe.train.trainer import Trainer


class Loop:
    """One training of one run, from its newest checkpoint or from the start.

    Args:
        trainer: configuration.
        run: where it is recorded.
        model: on its device, with fitted buffers.
        tasks: what to learn.
        train: private to this loop, at epoch 0.
        val: private to this loop, or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        model: nn.Module,
        tasks: tuple[Task, ...],
        train: DataLoader,
        val: DataLoader | None,
    ) -> None:
        self.config = trainer
        self.run = run
        self.model = model
        self.tasks = tasks
        self.loader = train
        self.val = val
        self.device = train.device
        self.optimizer = make_optimizer(model, lr=trainer.lr, weight_decay=trainer.weight_decay)
        self.parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        steps = (math.ceil(train.batches.count(epoch) / trainer.accumulate) for epoch in range(trainer.epochs))
        self.ends = [0, *itertools.accumulate(steps)]  # the step at which each epoch begins; they may differ in length
        self.total = self.ends[-1]
        if trainer.max_steps is not None:
            self.total = min(self.total, trainer.max_steps)
        self.stds = target_stds(model)
        self.step = 0
        self.metrics: dict[str, Any] = dict(run.metrics)
        # Over all ranks. Per task: sum of losses and labelled rows since the epoch began; per step not yet read: its
        # loss.
        self.sums = torch.zeros(len(tasks), 2, device=self.device)
        self.unread: list[tuple[int, torch.Tensor]] = []
        self.saved_at = time.monotonic()
        self.save_took = 0.0
        self.waited_s = self.trained_s = 0.0  # in the epochs of this process
        self.interrupt = Interrupt()
        self.stop_agreed = False  # by all ranks

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
        with noted_interrupt() as self.interrupt:
            return self._train()

    def _train(self) -> Run:
        self._restore()
        if self.step < self.total:  # else it had finished, and nothing more was asked for
            self._record(status='running', trainer=self.config.settings())
            try:
                while self.step < self.total:
                    self._epoch()
            except BaseException as error:
                status = 'failed' if isinstance(error, Exception) else 'interrupted'
                self._record(status=status, error=f'{type(error).__name__}: {error}')
                raise
        waited = {'data_wait_percent': round(100 * self.waited_s / self.trained_s, 1)} if self.trained_s else {}
        run = self._record(status='finished', metrics=self.metrics, step=self.step, error=None, **waited)
        # The other ranks wait for the last checkpoint and record, so that they too return a run that can be used.
        path = from_rank_0(str(run.path))
        return run if world()[0] == 0 else open_run(path)

    def _epoch(self) -> None:
        """From where the loader stands to the end of the epoch, or of the training."""
        epoch = bisect.bisect_right(self.ends, self.step) - 1
        last = min(self.total, self.ends[epoch + 1])
        self.model.train()
        batches = iter(self.loader)
        began = time.monotonic()
        while self.step < last:
            # All that is random in a step is a function of its number, so a checkpoint stores no generator.
            seed_generators(self.device, self.config.seed, self.step, world()[0])
            self._step(list(itertools.islice(batches, self.config.accumulate)))
            self._report(epoch, time.monotonic() - began)
            if self.step < last and (self._stopping() or self._checkpoint_due()):
                self._save()
                self._stop_if_asked()
        self.waited_s += self.loader.waited_s
        self.trained_s += time.monotonic() - began
        if last == self.ends[epoch + 1]:
            self.loader.set_epoch(epoch + 1)
        self._end_epoch(epoch)
        if self.step == self.total or self._stopping() or self._checkpoint_due():
            self._save()
            self._stop_if_asked()

    def _step(self, micro: list[dict[str, Any]]) -> None:
        config = self.config
        counts = self._labels(micro)
        rate = learning_rate(
            self.step, peak=config.lr, schedule=config.schedule, warmup=config.warmup, total=self.total
        )
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.optimizer.zero_grad(set_to_none=True)
        # A row per task: sum of its losses, its labelled rows. And a last row: the loss of the step.
        taken = torch.zeros(len(self.tasks) + 1, 2, device=self.device)
        while micro:
            batch = micro.pop(0)  # let go of it after its backward pass
            if len(batch['_key']) > 0:  # else this rank has no row in the last step of an epoch
                self._backward(batch, counts, taken)
        sum_over_ranks(taken)
        sum_gradients(self.parameters)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        same_on_all(self.model, parameters=False)
        self.step += 1
        self.sums += taken[:-1]
        self.unread.append((self.step, taken[-1, 0]))

    def _backward(self, batch: dict[str, Any], counts: list[float], taken: torch.Tensor) -> None:
        """Add the gradients of one batch, and to `taken` its part of the losses."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == 'bf16'):
            output = self.model(batch)
        losses = []
        for position, (task, count) in enumerate(zip(self.tasks, counts, strict=True)):
            # A task without a label in the whole step takes no part in it. Its head then has no gradient at all, so
            # that neither momentum nor weight decay moves it.
            if count:
                std = self.stds.get(task.name, 1.0)
                loss, rows = task.loss(output[task.name], batch[task.field], mask_of(batch, task), std=std)
                losses.append(loss * (task.weight / count))
                taken[position] += torch.stack([loss.detach(), rows])
        if losses:
            total = torch.stack(losses).sum()
            total.backward()
            taken[-1, 0] += total.detach()

    def _labels(self, micro: list[dict[str, Any]]) -> list[float]:
        """Labelled rows per task in this step, over micro-batches and ranks; known without asking the device."""
        counts = [float(sum(len(batch['_present'][task.field]) for batch in micro)) for task in self.tasks]
        if world()[1] == 1:
            return counts
        # Whether to stop travels along, so that it costs no message, and no rank waits for one that has left.
        asked = float(self.interrupt.asked)
        *counts, stop = sum_over_ranks(torch.tensor([*counts, asked], device=self.device)).tolist()
        self.stop_agreed = stop > 0
        return counts

    def _stopping(self) -> bool:
        return self.interrupt.asked if world()[1] == 1 else self.stop_agreed

    def _stop_if_asked(self) -> None:
        if self._stopping():
            from_rank_0('')  # a launcher may kill all ranks when the first one leaves, so they wait for the checkpoint
            raise KeyboardInterrupt(f'run {self.run.id} is saved after step {self.step} of {self.total}')

    def _report(self, epoch: int, seconds: float) -> None:
        if self.config.progress is not None:
            note = getattr(self.config.progress, 'note', None)
            if note is not None and seconds:
                # The host runs ahead of an accelerator, and may wait for data while that still computes.
                most = '' if self.device.type == 'cpu' else 'at most '
                note(f'{most}{100 * self.loader.waited_s / seconds:.0f} % waiting for data')
            done = epoch * self.loader.batches.end + self.loader.state_dict()['consumed']
            self.config.progress('train', done, self._samples(), 'rows')
        if self.step % self.config.log_every == 0:
            self._write_losses()

    def _samples(self) -> int:
        """Samples that the whole training takes."""
        samples, epochs = self.loader.batches.end, bisect.bisect_right(self.ends, self.total) - 1
        if epochs == len(self.ends) - 1:
            return epochs * samples
        share = (self.total - self.ends[epochs]) / (self.ends[epochs + 1] - self.ends[epochs])
        return epochs * samples + math.ceil(share * samples)

    def _end_epoch(self, epoch: int) -> None:
        """One line of metrics.jsonl: losses of the epoch per task, and the evaluation where one is due."""
        self._write_losses()
        totals = zip(self.tasks, self.sums.tolist(), strict=True)
        losses = {task.name: total / count if count else None for task, (total, count) in totals}
        line: dict[str, Any] = {'step': self.step, 'epoch': epoch, 'train': losses}
        due = self.step == self.total or (epoch + 1) % self.config.evaluate_every == 0
        if self.val is not None and due:
            found = evaluate(self.model, self.val, tasks=self.tasks, precision=self.config.precision)
            self.metrics = line['val'] = _finite_or_none(found)
            self.model.train()
        self._append([line])
        self.sums.zero_()

    def _checkpoint_due(self) -> bool:
        every, seconds = self.config.checkpoint_every, seconds_between(self.config.checkpoint_seconds, self.save_took)
        by_step = every is not None and self.step % every == 0
        return by_step or time.monotonic() - self.saved_at > seconds

    def _losses(self) -> list[tuple[int, float]]:
        """Losses of the steps since the last line; this waits for the device.

        Raises:
            TrainError: one of them is not finite.
        """
        if not self.unread:
            return []
        read = torch.stack([loss for _, loss in self.unread]).tolist()
        steps = [step for step, _ in self.unread]
        wrong = [step for step, loss in zip(steps, read, strict=True) if not math.isfinite(loss)]
        if wrong:
            names = [
                t.name for t, (total, _) in zip(self.tasks, self.sums.tolist(), strict=True) if not math.isfinite(total)
            ]
            raise TrainError(
                f'Run {self.run.id}: the loss of {", ".join(names) or "the model"} is not finite at step {wrong[0]}. '
                f'{self._ways_out()}'
            )
        return list(zip(steps, read, strict=True))

    def _write_losses(self) -> None:
        read = self._losses()
        if read:
            self._append([{'step': read[-1][0], 'loss': sum(loss for _, loss in read) / len(read)}])
            self.unread.clear()

    def _save(self) -> None:
        read = self._losses()  # waits for steps that the device has not done, which is no cost of the checkpoint
        began = time.monotonic()
        self._check_weights()
        state = {
            'step': self.step,
            'loader': self.loader.state_dict(),
            'sums': self.sums.tolist(),
            'unread': read,
            'metrics': self.metrics,
        }
        if world()[0] == 0:
            sync_metrics(self.run)
            save_checkpoint(self.run, self.model, self.optimizer, state)
        self.saved_at = time.monotonic()
        self.save_took = self.saved_at - began

    def _check_weights(self) -> None:
        """A checkpoint that nothing can be trained on from would take the place of one that is good.

        Raises:
            TrainError: a weight is not finite.
        """
        floats = [(name, t) for name, t in self.model.state_dict().items() if t.is_floating_point()]
        finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in floats])
        wrong = [name for (name, _), fine in zip(floats, finite.tolist(), strict=True) if not fine]
        if wrong:
            more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
            raise TrainError(
                f'Run {self.run.id}: {wrong[0]}{more} of the model is not finite after step {self.step}. '
                f'{self._ways_out()}'
            )

    def _ways_out(self) -> str:
        kept = self.run.newest_checkpoint()
        steps = (
            'It has no checkpoint yet' if kept is None else f'Its last checkpoint, of step {int(kept.name)}, is good'
        )
        return f'Lower lr={self.config.lr}, set clip=1.0, or look for extreme values in the inputs. {steps}.'

    def _restore(self) -> None:
        folder = self.run.newest_checkpoint()
        state = load_checkpoint(folder, self.model, self.optimizer) if folder is not None else None
        if state is not None:
            self.step = state['step']
            self.loader.load_state_dict(state['loader'])
            self.sums.copy_(torch.tensor(state['sums']))
            self.unread = [(step, torch.tensor(loss, device=self.device)) for step, loss in state['unread']]
            self.metrics = state['metrics']
        if world()[0] == 0:
            cut_metrics(self.run, self.step)
            drop_checkpoints(self.run, keep=1)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if world()[0] == 0:
            append_metrics(self.run, lines)

    def _record(self, **changes: Any) -> Run:
        if world()[0] == 0:
            self.run = update_run(self.run, **changes)
        return self.run


def _finite_or_none(value: Any) -> Any:
    """NaN is not JSON."""
    if isinstance(value, Mapping):
        return {key: _finite_or_none(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
