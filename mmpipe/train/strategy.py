"""What a step asks of the ranks it is shared by; the one place that knows how a model is spread over them.

`Replicated` holds the whole model on every rank (`DistributedDataParallel`); `mmpipe.train.sharded.Sharded` holds a
part of it. The loop and its checkpoints ask nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmpipe.data.ranks import data_group, world
from mmpipe.train.distributed import same_on_all, sum_gradients, sum_over_ranks

BUFFERS_OF_RANK_0 = next(
    name
    for name in ('forward_sync_buffers', 'broadcast_buffers')
    if name in inspect.signature(DistributedDataParallel).parameters
)
"""What torch calls, before and since 2.14, to send buffers in each forward pass; `settle` does that once a step."""


Batch = Mapping[str, Any]
Outputs = Mapping[str, torch.Tensor]


OWNED = '@'
"""What names of an `OwnedState` begin with, which no parameter's does."""


class OwnedState(Protocol):
    """State of an optimizer that an engine has taken over, in tensors of this process."""

    def state(self) -> dict[str, torch.Tensor]:
        """Them by name: '@', what they are made for, and what no other process says."""
        ...

    def room(self, stored: Sequence[str], *, source: str) -> dict[str, torch.Tensor]:
        """Tensors for the stored ones that this process needs, to read into.

        Args:
            stored: names of all that there are.
            source: where, for messages.

        Raises:
            TrainError: what is stored was made for something else.
        """
        ...

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what was read; weights have been read before."""
        ...


class Pass(Protocol):
    """What a step does with a micro-batch."""

    @property
    def learns(self) -> bool:
        """Whether any row of the step has a label."""
        ...

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Forward pass, losses and backward pass; float32 `[2 * tasks + 1]`, see `mmpipe.train.step.Stepper`."""
        ...

    def laid(self, batch: Batch) -> Batch:
        """The batch as the model takes it."""
        ...

    def loss(self, output: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to go backward from, and what `__call__` would return."""
        ...


class Strategy(Protocol):
    """How a model is spread over ranks."""

    def prepare(self, model: nn.Module) -> None:
        """Spread a model that is on its device: the same weights for all ranks."""
        ...

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over the optimizer of a prepared model, where an engine wants to own it."""
        ...

    @property
    def owned(self) -> OwnedState | None:
        """The optimizer's state, where an engine owns it."""
        ...

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around saving and loading: inside, `state_dict` has whole tensors or `DTensor`s."""
        ...

    def callable(self, model: nn.Module) -> nn.Module:
        """What to call in place of a prepared model; asked again when other parts of it are trained."""
        ...

    @property
    def ranks(self) -> int:
        """How many share a step's rows."""
        ...

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of some numbers over these ranks."""
        ...

    @property
    def draws(self) -> int:
        """Which random numbers a process draws in a step; those that must draw the same ones have the same number."""
        ...

    def called(self, model: nn.Module) -> Callable[[Batch], Outputs]:
        """What gives all outputs of a batch to each process, for an evaluation."""
        ...

    def passes(self, micro: list[dict[str, Any]], one: Pass, *, even: bool) -> torch.Tensor | None:
        """Forward and backward passes of a step.

        Args:
            micro: micro-batches of this rank; emptied, so that each can go when it is done.
            one: what is done with each.
            even: whether every rank has rows in every micro-batch of the step.

        Returns:
            The sum of what `one` gave for micro-batches that have rows; None where none has, or on a process that does
            not see losses.
        """
        ...

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """After the backward passes of a step: gradients of all ranks and micro-batches as one sum."""
        ...

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """Scale gradients down to a norm over all of them; the norm they had, on the device."""
        ...

    def step(self, bad: torch.Tensor) -> bool:
        """Update the weights, unless `bad` is 1; False where that is left to the caller."""
        ...

    def settle(self, model: nn.Module) -> None:
        """After the optimizer: what ranks must agree on, such as statistics of BatchNorm."""
        ...


class OverRanks:
    """What strategies have in common: rows are shared by ranks, and what is not in parts must be the same on each."""

    @property
    def ranks(self) -> int:
        """See `Strategy.ranks`."""
        return world()[1]

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.adopt`."""

    @property
    def owned(self) -> OwnedState | None:
        """See `Strategy.owned`."""
        return None

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See `Strategy.whole`."""
        return nullcontext()

    def step(self, bad: torch.Tensor) -> bool:
        """See `Strategy.step`."""
        return False

    @property
    def draws(self) -> int:
        """See `Strategy.draws`."""
        return world()[0]

    def called(self, model: nn.Module) -> Callable[[Batch], Outputs]:
        """See `Strategy.called`."""
        return model

    def passes(self, micro: list[dict[str, Any]], one: Pass, *, even: bool) -> torch.Tensor | None:
        """See `Strategy.passes`."""
        taken = None
        while micro:
            batch = micro.pop(0)  # let go of it after its backward pass
            if len(batch['_key']) > 0:  # else this rank has no row in the last step of an epoch
                with self.micro(last=not micro, even=even):
                    part = one(batch)
                taken = part if taken is None else taken + part
        return taken

    def micro(self, *, last: bool, even: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of one micro-batch.

        Args:
            last: of its step.
            even: whether every rank has rows in every micro-batch of the step.
        """
        return nullcontext()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """See `Strategy.total`."""
        return sum_over_ranks(values)

    def settle(self, model: nn.Module) -> None:
        """See `Strategy.settle`."""
        same_on_all(model, parameters=False)


class Replicated(OverRanks):
    """The whole model on every rank, or on the only one; gradients are summed while the backward pass goes on.

    Not `torch.nn.DataParallel`: it copies the model to all devices in each step, runs them by threads of one process
    behind one interpreter lock, and gathers outputs on one of them (torch's own documentation advises against it).

    Args:
        overlap: False to sum gradients in one message after the backward pass, where a loss balancing takes its
            gradients in a way that `DistributedDataParallel` does not see.

    >>> strategy, model = Replicated(), nn.Linear(2, 1)
    >>> strategy.prepare(model); strategy.callable(model) is model
    True
    """

    def __init__(self, *, overlap: bool = True) -> None:
        self.overlap = overlap
        self._wrapped: DistributedDataParallel | None = None
        self._trained: frozenset[nn.Parameter] = frozenset()

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`."""
        same_on_all(model, parameters=True)

    def callable(self, model: nn.Module) -> nn.Module:
        """See `Strategy.callable`."""
        trained = frozenset(parameter for parameter in model.parameters() if parameter.requires_grad)
        if world()[1] == 1 or not self.overlap or not trained:
            return model
        if self._wrapped is None or trained != self._trained:
            self._wrapped = None  # takes its hooks off before others come
            # A task may have no label and a modality no row on one rank: what its step leaves out is zero there.
            options: dict[str, Any] = {BUFFERS_OF_RANK_0: False, 'find_unused_parameters': True}
            wrapped = DistributedDataParallel(model, process_group=data_group(), **options)
            wrapped.register_comm_hook(data_group() or distributed.group.WORLD, _summed)
            self._wrapped, self._trained = wrapped, trained
        return self._wrapped

    def micro(self, *, last: bool, even: bool) -> AbstractContextManager[Any]:
        """See `OverRanks.micro`."""
        return nullcontext() if self._wrapped is None or (last and even) else self._wrapped.no_sync()

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`."""
        if self.ranks == 1:
            return
        done = self._trained if self._wrapped is not None and even else frozenset()
        sum_gradients([parameter for parameter in parameters if parameter not in done])

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """See `Strategy.clip`."""
        return nn.utils.clip_grad_norm_(parameters, norm)


class Alone(Replicated):
    """A rank by itself, whatever others do: for a look at what a step takes.

    >>> Alone().ranks
    1
    """

    def callable(self, model: nn.Module) -> nn.Module:
        """See `Strategy.callable`."""
        return model

    @property
    def ranks(self) -> int:
        """See `Strategy.ranks`."""
        return 1

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """See `Strategy.total`."""
        return values

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`."""

    def settle(self, model: nn.Module) -> None:
        """See `Strategy.settle`."""


def _summed(group, bucket):  # torch wants these two without annotations, or with evaluated ones
    """Losses are divided by the labels of all ranks already, so gradients are summed; torch's default is their mean."""
    done = distributed.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return done.then(lambda future: future.value()[0])
