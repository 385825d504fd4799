"""Losses over the rows that have a label, as (sum, count): the division comes once, over micro-batches and ranks.

A mean of means would weigh a label more where few rows have one. A row without a label adds exactly 0 to the sum and
to every gradient, whatever stands in its place.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

Sums = tuple[torch.Tensor, torch.Tensor]
"""(sum of the losses, number of labelled rows), both float32 scalars on the device."""

IGNORED = -100  # no class


def cross_entropy(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> Sums:
    """Negative log-likelihood of the right class.

    Args:
        output: logits `[B, classes]`.
        target: int64 `[B]`, or shares of the classes as float `[B, classes]`, which mixed rows have; anything where
            `mask` is false.
        mask: bool `[B]`.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -7]), torch.tensor([True, False]))
    (tensor(1.3863), tensor(1.))
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([[0.3, 0.7]]), torch.tensor([True]))
    (tensor(0.6931), tensor(1.))
    """
    if target.ndim == 2:
        shares = target.float().where(mask[:, None], 0.0)
        return _masked(F.cross_entropy(output.float(), shares, reduction='none'), mask)
    known = target.long().where(mask, IGNORED)
    return F.cross_entropy(output.float(), known, ignore_index=IGNORED, reduction='sum'), _count(mask)


def binary_cross_entropy(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> Sums:
    """Mean over the classes of the negative log-likelihood of each being there or not.

    Args:
        output: logits `[B, classes]`.
        target: 0 or 1, any dtype, `[B, classes]`.
        mask: bool `[B]`.

    >>> binary_cross_entropy(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([True]))
    (tensor(0.6931), tensor(1.))
    """
    known = target.float().where(mask[:, None], 0.0)
    losses = F.binary_cross_entropy_with_logits(output.float(), known, reduction='none').mean(1)
    return _masked(losses, mask)


def squared_error(
    output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, std: torch.Tensor | float = 1.0
) -> Sums:
    """Squared error in units of the target's standard deviation: 1 is what predicting the mean gives.

    Args:
        output: `[B]` in the unit of the target.
        target: `[B]`.
        mask: bool `[B]`.
        std: standard deviation of the target on the training rows.

    >>> squared_error(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([True]), std=2.0)
    (tensor(1.), tensor(1.))
    """
    known = target.float().where(mask, 0.0)
    return _masked(((output.float() - known) / std) ** 2, mask)


def _masked(losses: torch.Tensor, mask: torch.Tensor) -> Sums:
    return losses.where(mask, 0.0).sum(), _count(mask)


def _count(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum(dtype=torch.float32)
