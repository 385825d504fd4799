"""A running average of the weights (EMA), which often generalises better than the newest ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """After every step each averaged parameter is `decay` times itself plus 1 - `decay` times the newest one.

    Polyak, Juditsky 1992; Tarvainen, Valpola 2017, "Mean teachers are better role models", equation 1. Buffers, such as
    statistics of BatchNorm, are running averages already, and are those of the model.

    Args:
        model: what is trained, on its device.
        decay: in (0, 1), such as 0.999: the average looks back some 1 / (1 - decay) steps.

    Attributes:
        model: a copy with the averaged weights, for a checkpoint; up to date after `settle`.

    >>> trained = nn.Linear(1, 1, bias=False); _ = trained.weight.data.fill_(0.0)
    >>> average = Average(trained, decay=0.9)
    >>> _ = trained.weight.data.fill_(1.0); average.update()
    >>> with average.applied():
    ...     round(trained.weight.item(), 3)
    0.1
    >>> trained.weight.item()
    1.0
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._trained = model
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._mine: list[torch.Tensor] = list(self.model.parameters())
        self._newest: list[torch.Tensor] = list(model.parameters())
        self._step = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take account of a step. Nothing waits for the device."""
        self._step(self._mine, self._newest, None)

    def settle(self) -> None:
        """Give the copy the buffers that the model has now."""
        for mine, newest in zip(self.model.buffers(), self._trained.buffers(), strict=True):
            mine.copy_(newest)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in self._newest]
            torch._foreach_copy_(self._newest, self._mine)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._newest, kept)
