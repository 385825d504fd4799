"""Heads: from the fused features to the output of one task, in the unit of its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks, Standardize

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task


class Head(nn.Module):
    """One linear layer to logits.

    Args:
        in_features: size of the fused features.
        outputs: logits per row.

    >>> Head(4, 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.linear = initialise(nn.Linear(in_features, outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F] -> float32 [B, outputs]."""
        return self.linear(features).float()


class RegressionHead(nn.Module):
    """One linear layer to a standardised number, given back in the unit of the target.

    Args:
        in_features: size of the fused features.

    >>> RegressionHead(4)(torch.zeros(2, 4)).shape
    torch.Size([2])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.linear = initialise(nn.Linear(in_features, 1))
        self.standardize = Standardize()

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation of the target."""
        self.standardize.fit_buffers(chunks)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F] -> float32 [B]."""
        return self.standardize.undo(self.linear(features).squeeze(1))


def make_head(task: Task, in_features: int) -> nn.Module:
    """The head for a task."""
    return RegressionHead(in_features) if task.kind == 'regression' else Head(in_features, task.outputs)
