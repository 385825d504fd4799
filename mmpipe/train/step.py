"""One optimizer step: forward and backward passes of its micro-batches, gradients of all ranks, and the update.

Nothing in it waits for the device. Losses come back as a tensor, and whether they are finite is decided there too: an
update whose loss is not finite is left out by the kernel of the optimizer itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmpipe.data.xla import end_of_step
from mmpipe.train.balancing import Balancing
from mmpipe.train.evaluate import mask_of, target_stds
from mmpipe.train.precision import autocast, loss_scaler
from mmpipe.train.strategy import Strategy
from mmpipe.train.tasks import Task


class Stepper:
    """Takes the steps of one training.

    Args:
        model: on its device, as the strategy prepared it.
        tasks: what to learn.
        optimizer: of all that is trained.
        balancing: how losses become gradients.
        strategy: how ranks share a step.
        device: where the model is.
        precision: 'fp32', 'bf16' or 'fp16'.
        clip: largest norm of the gradient; None for no clipping.
        channels_last: whether images are laid out with their channels last.

    Attributes:
        scaler: of the losses, for fp16.

    >>> from mmpipe.models import BareModel
    >>> from mmpipe.train.strategy import Replicated
    >>> from mmpipe.train.tasks import regression
    >>> task = regression('price')
    >>> model = BareModel(nn.Linear(2, 1), inputs='title', tasks=[task])
    >>> optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    >>> step = Stepper(model, [task], optimizer, balancing=Balancing(), strategy=Replicated(),
    ...                device=torch.device('cpu'))
    >>> batch = {'title': torch.ones(3, 2), 'price': torch.ones(3), '_key': ['a', 'b', 'c']}
    >>> taken = step([batch], [3.0], factor=1.0); taken.shape, taken[1]
    (torch.Size([3]), tensor(3.))
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        optimizer: torch.optim.Optimizer,
        *,
        balancing: Balancing,
        strategy: Strategy,
        device: torch.device,
        precision: str = 'fp32',
        clip: float | None = None,
        channels_last: bool = False,
    ) -> None:
        self.model, self.tasks, self.optimizer = model, tuple(tasks), optimizer
        self.balancing, self.strategy, self.device = balancing, strategy, device
        self.precision, self.clip, self.channels_last = precision, clip, channels_last
        self.scaler = loss_scaler(precision, device)
        self.parameters = [p for group in optimizer.param_groups for p in group['params']]
        self.stds = target_stds(model)
        self.trained: list[nn.Parameter] = []
        self.nothing = torch.zeros((), device=device)
        self.refresh()
        for group in optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])
        # What such an optimizer takes along with its gradients: whether to leave the update out.
        self.skips = bool(getattr(optimizer, '_step_supports_amp_scaling', False))

    def __call__(
        self,
        micro: list[dict[str, Any]],
        counts: Sequence[float],
        *,
        factor: float | None,
        even: bool = True,
        unused: Sequence[nn.Parameter] = (),
    ) -> torch.Tensor:
        """Take one step.

        Args:
            micro: micro-batches of this rank; emptied, so that each can go when it is done.
            counts: labelled rows per task in the whole step, of all micro-batches and ranks.
            factor: of the learning rates with which the optimizer was made; None where a scheduler sets them.
            even: whether every rank has rows in each of its micro-batches.
            unused: parameters that no rank needs in this step, though they may get a gradient of zero.

        Returns:
            float32 `[2 * tasks + 1]`, over all ranks: per task the sum of losses and the labelled rows; at the end the
            loss of the step. Where that is not finite, nothing was updated; where it is but the gradient is not, and
            that is clipped, neither, and the loss is told as NaN. An overflow of fp16 is no such step.
        """
        if factor is not None:
            for group in self.optimizer.param_groups:
                group['lr'] = group['initial_lr'] * factor
        self.optimizer.zero_grad(set_to_none=True)
        taken = self.strategy.passes(micro, _Pass(self, counts, 1 / (len(micro) * self.strategy.ranks)), even=even)
        if taken is None:
            taken = self.nothing.repeat(2 * len(self.tasks) + 1)
        self.strategy.total(taken)
        for parameter in unused:
            parameter.grad = None
        self.strategy.reduce(self.parameters, even=even)
        loss = taken[-1]
        if self.clip is not None:
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
            norm = self.strategy.clip(self.parameters, self.clip)
            if not self.scaler.is_enabled():  # of fp16, overflows are part of finding a scale
                loss += norm * 0.0  # NaN where the norm is not finite
        self._update(_not_finite(loss))
        self.strategy.settle(self.model)
        end_of_step(self.device)
        return taken

    def refresh(self) -> None:
        """Look again at which parameters are trained, and which are frozen."""
        self.trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.called = self.strategy.callable(self.model)

    def _update(self, bad: torch.Tensor) -> None:
        if self.scaler.is_enabled():  # looks at all gradients, and leaves out an update where one is not finite
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.strategy.step(bad):
            pass
        elif self.skips:
            with _told(self.optimizer, bad):
                self.optimizer.step()
        elif not bad:  # waits for the device: this optimizer cannot be told on it
            self.optimizer.step()


class _Pass:
    """See `mmpipe.train.strategy.Pass`.

    Args:
        stepper: whose step it is.
        counts: labelled rows per task in the whole step.
        share: part of the step that a micro-batch is.
    """

    def __init__(self, stepper: Stepper, counts: Sequence[float], share: float) -> None:
        self.stepper, self.counts, self.share = stepper, counts, share

    @property
    def learns(self) -> bool:
        return any(self.counts)

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Add the gradients of one micro-batch; its part of what a step returns."""
        stepper = self.stepper
        batch = self.laid(batch)
        with autocast(stepper.precision, stepper.device):
            output = stepper.called(batch)
        losses, parts = self._losses(output, batch)
        total = stepper.nothing
        if losses:
            total = stepper.balancing.backward(
                losses, share=self.share, parameters=stepper.trained, scale=stepper.scaler.scale
            )
        return torch.stack([*parts, total]).float()

    def laid(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_channels_last(batch) if self.stepper.channels_last else batch

    def loss(self, output: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        losses, parts = self._losses(output, batch)
        total = self.stepper.balancing.total(losses, share=self.share)
        return total, torch.stack([*parts, total.detach()]).float()

    def _losses(
        self, output: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Weighted losses over the labels of the step; and per task the sum of losses and the labelled rows."""
        stepper, losses = self.stepper, {}
        parts: list[torch.Tensor] = []
        for task, count in zip(stepper.tasks, self.counts, strict=True):
            # A task without a label in the whole step takes no part in it. Its head then has no gradient at all, so
            # that neither momentum nor weight decay moves it.
            if not count:
                parts += [stepper.nothing, stepper.nothing]
            else:
                std = stepper.stds.get(task.name, 1.0)
                loss, rows = task.loss(output[task.name], batch[task.field], mask_of(batch, task), std=std)
                losses[task.name] = loss * (task.weight / count)
                parts += [loss.detach(), rows]
        return losses, parts


def _not_finite(value: torch.Tensor) -> torch.Tensor:
    """float32 1 or 0 on the device; in two operations, where `isfinite` takes five."""
    return (value - value).ne_(0.0)  # infinity less itself is no number, and no number equals nothing


@contextlib.contextmanager
def _told(optimizer: Any, bad: torch.Tensor) -> Any:
    """As `torch.amp.GradScaler` does: fused optimizers read this attribute, and update nothing where it is 1."""
    optimizer.grad_scale, optimizer.found_inf = None, bad
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def with_channels_last(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its images `[B, C, H, W]` of floats in the layout that convolutions are fastest with.

    >>> with_channels_last({'photo': torch.zeros(2, 3, 4, 4), '_key': ['a', 'b']})['photo'].stride()
    (48, 1, 12, 3)
    """
    return {
        name: value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, torch.Tensor) and value.ndim == 4 and value.is_floating_point()
        else value
        for name, value in batch.items()
    }
