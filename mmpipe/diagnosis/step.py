"""A training step on a copy of a model, so that the model itself is left as it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.shards import Rows
from mmpipe.train.evaluate import mask_of, target_stds
from mmpipe.train.optimizer import make_optimizer
from mmpipe.train.precision import autocast
from mmpipe.train.random_numbers import borrowed_generators
from mmpipe.train.tasks import Task

STILL = 1e-12  # a learning rate at which an optimizer does all its work, and no weight runs away


class TrainingStep:
    """Forward, losses, backward and AdamW, as `mm.Trainer` does them, on a copy of a model.

    Args:
        model: from a batch to {task name: output}.
        tasks: what it learns.
        rows: to fit buffers on that are not fitted yet; a few are enough here.
        device: where the copy runs.
        precision: 'fp32' or 'bf16'.

    Raises:
        ConfigError: the model cannot be copied.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.tasks import regression
    >>> class Model(nn.Linear):
    ...     def forward(self, batch): return {'price': super().forward(batch['price'][:, None])[:, 0]}
    >>> model = Model(1, 1)
    >>> step = TrainingStep(model, [regression('price')], example_rows(), torch.device('cpu'))
    >>> step({'price': torch.ones(2), '_key': ['a', 'b']}), model.weight.grad is None
    (None, True)
    """

    def __init__(
        self, model: nn.Module, tasks: Sequence[Task], rows: Rows, device: torch.device, *, precision: str = 'fp32'
    ) -> None:
        try:
            self.model = copy.deepcopy(model).to(device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f'{type(model).__name__} cannot be copied ({error}), and the doctor measures a copy. Pass a model that '
                f'was just built, or leave the model out to examine the loading alone.'
            ) from error
        if hasattr(self.model, 'fit_buffers'):
            self.model.fit_buffers(rows)  # type: ignore[operator]
        self.model.train()
        self.tasks, self.device, self.precision = tuple(tasks), device, precision
        self.stds = target_stds(self.model)
        learns = any(parameter.requires_grad for parameter in self.model.parameters())
        self.optimizer = make_optimizer(self.model, lr=STILL, weight_decay=0.0) if learns else None

    def __call__(self, batch: dict[str, Any]) -> None:
        """One step on a batch that is on the device."""
        with torch.set_grad_enabled(self.optimizer is not None):
            with autocast(self.precision, self.device):
                output = self.model(batch)
            losses = []
            for task in self.tasks:
                target, mask = batch[task.field], mask_of(batch, task)
                loss, _ = task.loss(output[task.name], target, mask, std=self.stds.get(task.name, 1.0))
                losses.append(loss * (task.weight / len(batch['_key'])))
            total = torch.stack(losses).sum()
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
            if total.requires_grad:
                total.backward()
                self.optimizer.step()


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Give the global random generators of torch, numpy and Python back as they were.

    >>> before = random.getstate()
    >>> with generators_kept(torch.device('cpu')):
    ...     _ = random.random(), torch.rand(1)
    >>> random.getstate() == before
    True
    """
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with borrowed_generators(device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
