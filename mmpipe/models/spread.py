"""Tensors of which each process holds a part (`DTensor`), beside plain ones: to the whole, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def mesh_of(tensor: torch.Tensor) -> Any:
    """The `DeviceMesh` that a tensor is spread over; None for a plain one.

    >>> mesh_of(torch.zeros(1))
    """
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor on this process; all processes that hold a part of it must ask.

    >>> whole_of(torch.ones(1))
    tensor([1.])
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds a part of the module alone.

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def like(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, spread as another one is.

    Args:
        tensor: spread, or plain.
        whole: of the same shape; the same on all processes.

    >>> like(torch.zeros(2), torch.ones(2))
    tensor([1., 1.])
    """
    if not isinstance(tensor, DTensor) or whole.shape != tensor.shape:
        return whole
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    holder = nn.Module()
    holder.register_parameter('value', nn.Parameter(torch.empty_like(tensor), requires_grad=False))
    set_model_state_dict(holder, {'value': whole}, options=StateDictOptions(full_state_dict=True))
    return holder.get_parameter('value').data
