"""Which device, and the one place where a batch crosses to it.

Every loader ships fields as they are stored, so images cross as uint8: a quarter of the bytes of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmpipe.data.xla import xla_device
from mmpipe.errors import ConfigError

Transfer = Callable[[str, torch.dtype, int, torch.device], None]
"""Called for every tensor that crosses: name in the batch, dtype, bytes, target device."""


def resolve(device: str | torch.device = 'auto') -> torch.device:
    """The device a name stands for.

    Args:
        device: 'auto' for this machine's accelerator (CUDA, MPS, XPU: whatever `torch.accelerator` finds) or else the
            CPU; 'xla' with torch_xla; or any torch device.

    Raises:
        ConfigError: torch does not know the name, or this machine has no such device.

    >>> resolve('cpu')
    device(type='cpu')
    """
    if str(device) == 'auto':
        return torch.accelerator.current_accelerator(check_available=True) or torch.device('cpu')
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"torch knows no device {device!r}. Use 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', 'xpu' or 'xla'."
        ) from error
    if chosen.type == 'xla':
        return xla_device()
    if chosen.type not in ('cpu', 'meta'):
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != chosen.type:
            raise ConfigError(
                f'device {str(chosen)!r} was asked for, but this machine has {found or "no accelerator"}. '
                f"Use device='auto', or install a torch build for it."
            )
    return chosen


def device_name(device: torch.device) -> str:
    """A device in words, such as 'cuda: NVIDIA H100' or 'cpu'.

    >>> device_name(torch.device('cpu'))
    'cpu'
    """
    if device.type not in ('cuda', 'xpu'):
        return device.type
    return f'{device.type}: {torch.get_device_module(device).get_device_name(device)}'


def to_device(
    batch: Any, device: torch.device, *, non_blocking: bool = False, on_transfer: Transfer | None = None, name: str = ''
) -> Any:
    """Move every tensor of a batch; strings, bytes and numbers stay where they are.

    Args:
        batch: dict (nested or not) of tensors and other things.
        device: where to.
        non_blocking: let the copy overlap with what the host does next; only for pinned memory.
        on_transfer: told of every tensor before it crosses, also when the target is the CPU it is already on.
        name: prefix of the names it is told.

    Returns:
        A new dict of the same layout.

    >>> seen = []
    >>> _ = to_device({'photo': torch.zeros(2, 3, dtype=torch.uint8), '_key': ['a', 'b']}, torch.device('cpu'),
    ...               on_transfer=lambda *what: seen.append(what))
    >>> seen
    [('photo', torch.uint8, 6, device(type='cpu'))]
    """
    if isinstance(batch, torch.Tensor):
        if on_transfer is not None:
            on_transfer(name, batch.dtype, batch.numel() * batch.element_size(), device)
        if device.type == 'mps' and batch.dtype == torch.float64:
            batch = batch.float()  # it has no float64
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, dict):
        return {
            key: to_device(
                value, device, non_blocking=non_blocking, on_transfer=on_transfer, name=f'{name}.{key}' if name else key
            )
            for key, value in batch.items()
        }
    return batch
