"""What a step asks of the ranks it is shared by; the one place that knows how a model is spread over them.

`Replicated` holds the whole model on every rank and sums gradients. Another strategy shards or pipelines the model
behind the same few methods; the loop and its checkpoints ask nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from mmpipe.data.loader import world
from mmpipe.train.distributed import same_on_all, sum_gradients, sum_over_ranks


class Strategy(Protocol):
    """How a model is spread over ranks."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model to call, on its device; the same weights on all ranks."""
        ...

    @property
    def ranks(self) -> int:
        """How many share a step."""
        ...

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of some numbers over ranks."""
        ...

    def reduce(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        """After the backward passes of a step: gradients of all ranks and micro-batches as one."""
        ...

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """Scale gradients down to a norm over all of them; the norm they had, on the device."""
        ...

    def settle(self, model: nn.Module) -> None:
        """After the optimizer: what ranks must agree on, such as statistics of BatchNorm."""
        ...


class Replicated:
    """The whole model on every rank, or on the only one.

    >>> model = nn.Linear(2, 1)
    >>> Replicated().prepare(model) is model
    True
    """

    def prepare(self, model: nn.Module) -> nn.Module:
        """See `Strategy.prepare`."""
        same_on_all(model, parameters=True)
        return model

    @property
    def ranks(self) -> int:
        """See `Strategy.ranks`."""
        return world()[1]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """See `Strategy.total`."""
        return sum_over_ranks(values)

    def reduce(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        """See `Strategy.reduce`."""
        sum_gradients(parameters)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """See `Strategy.clip`."""
        return nn.utils.clip_grad_norm_(parameters, norm)

    def settle(self, model: nn.Module) -> None:
        """See `Strategy.settle`."""
        same_on_all(model, parameters=False)


class Alone(Replicated):
    """A rank by itself, whatever others do: for a look at what a step takes.

    >>> Alone().ranks
    1
    """

    @property
    def ranks(self) -> int:
        """See `Strategy.ranks`."""
        return 1

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """See `Strategy.total`."""
        return values

    def reduce(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        """See `Strategy.reduce`."""

    def settle(self, model: nn.Module) -> None:
        """See `Strategy.settle`."""
