"""The optimizer and its learning rate, a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmpipe.errors import TrainError


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what is trainable; biases, norms and other vectors are not decayed.

    Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019; decaying matrices only, as GPT-3 and timm do.

    Args:
        model: frozen parameters are left out.
        lr: peak learning rate.
        weight_decay: per unit of learning rate.

    Raises:
        TrainError: nothing is trainable.

    >>> [len(group['params']) for group in make_optimizer(nn.Linear(2, 1), lr=0.1, weight_decay=0.1).param_groups]
    [1, 1]
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainError(
            f'{type(model).__name__} has no parameter to train: every one is frozen, or there are none. Unfreeze some.'
        )
    groups = [
        {'params': [p for p in trainable if p.ndim >= 2], 'weight_decay': weight_decay},
        {'params': [p for p in trainable if p.ndim < 2], 'weight_decay': 0.0},
    ]
    # One kernel for all parameters, which computes the same formula.
    fused = all(p.device.type in ('cpu', 'cuda', 'xpu', 'mps') and p.is_floating_point() for p in trainable)
    return torch.optim.AdamW([group for group in groups if group['params']], lr=lr, fused=fused)


def learning_rate(step: int, *, peak: float, schedule: str, warmup: int, total: int) -> float:
    """Learning rate of an optimizer step.

    Args:
        step: from 0.
        peak: highest learning rate.
        schedule: 'constant', or 'cosine' down to 0 at `total`.
        warmup: steps of linear growth before it.
        total: steps of the whole run.

    >>> [learning_rate(s, peak=1.0, schedule='cosine', warmup=2, total=6) for s in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == 'constant':
        return peak
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
