"""Numbers of fewer bits where they suffice: autocast, and for fp16 a loss scale. Weights and losses stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mmpipe.errors import ConfigError

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def check_precision(name: str) -> None:
    """Refuse what is no precision.

    Raises:
        ConfigError: another name.

    >>> check_precision('bf16')
    """
    if name not in DTYPES:
        raise ConfigError(f'precision={name!r}: one of {", ".join(map(repr, DTYPES))} is meant.')


def autocast(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, what can compute in the named dtype does.

    Args:
        name: 'fp32', 'bf16' or 'fp16'.
        device: where it computes.

    >>> with autocast('bf16', torch.device('cpu')):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    if name == 'fp32':  # also inside of an autocast of the caller's
        inside = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, enabled=False) if inside else nullcontext()
    return torch.autocast(device.type, DTYPES[name])


def loss_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps gradients of fp16 from underflowing: losses are scaled up, gradients down again.

    Micikevicius et al. 2018, "Mixed Precision Training", section 3.2. bf16 has the range of float32 and needs none;
    then it does nothing.

    >>> loss_scaler('bf16', torch.device('cpu')).is_enabled()
    False
    """
    return torch.amp.GradScaler(device.type, enabled=name == 'fp16')
