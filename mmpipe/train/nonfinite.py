"""Which steps were not finite, how many of them a training passes over, and which weights are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import distributed, nn

from mmpipe.models.spread import here_of, is_sharded


class NotFinite:
    """Steps whose loss was not finite: passed over at first; left out after the training has gone back for them.

    Args:
        most: how many are passed over before that.

    Attributes:
        skipped: their numbers (from 1 on), since the training began or went back.
        left_out: numbers (from 0 on) of those that are not taken again.

    >>> steps = NotFinite(most=1)
    >>> steps.skipped += [7, 9]
    >>> steps.too_many, steps.may_leave_out
    (True, True)
    >>> steps.leave_out([7, 9]); sorted(steps.left_out)
    [6, 8]
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.skipped: list[int] = []
        self.left_out: set[int] = set()

    @property
    def too_many(self) -> bool:
        """Whether to go back, or to end."""
        return len(self.skipped) > self.most

    @property
    def may_leave_out(self) -> bool:
        """Whether there is something to leave out that was not before, and not too much of it in all."""
        return len(self.skipped) > 0 and len(self.skipped) + len(self.left_out) <= 2 * self.most + 1

    def leave_out(self, steps: Iterable[int]) -> None:
        """From now on.

        Args:
            steps: their numbers (from 1 on), as in `skipped`.
        """
        self.left_out |= {step - 1 for step in steps}

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {'left_out': sorted(self.left_out), 'skipped': self.skipped}

    def load(self, state: Mapping[str, Any]) -> None:
        """As it was when a checkpoint was saved."""
        self.left_out, self.skipped = set(state['left_out']), list(state['skipped'])


def not_finite_in(model: nn.Module) -> list[str]:
    """Names of parameters and buffers with a value that is not finite, in the part of any process.

    >>> layer = nn.Linear(1, 1)
    >>> _ = layer.bias.data.fill_(torch.nan)
    >>> not_finite_in(layer)
    ['bias']
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    floats = [(name, here_of(tensor)) for name, tensor in tensors if tensor.is_floating_point()]
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in floats]).float()
    if is_sharded(model):
        distributed.all_reduce(finite, op=distributed.ReduceOp.MIN)
    return [name for (name, _), fine in zip(floats, finite.tolist(), strict=True) if not fine]
