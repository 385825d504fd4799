"""Models over processes: tensors of which each has a part (`DTensor`), and stages of which each has whole tensors.

To the whole, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Held:
    """What a process holds of a model in stages; kept as the attribute `held` of the model.

    Args:
        names: of its parameters and buffers that are up to date here.
        group: the `ProcessGroup` of all stages, one process each.
        copy: which copy of the model these are; from 0.
    """

    names: frozenset[str]
    group: Any
    copy: int = 0


def held_of(module: nn.Module) -> Held | None:
    """What this process holds of a module in stages; None of one that is not.

    >>> held_of(nn.Linear(1, 1))
    """
    return getattr(module, 'held', None)


def union(tensors: Mapping[str, torch.Tensor], held: Held, *, keep: bool) -> dict[str, torch.Tensor]:
    """What all stages have, on the CPU; all processes must ask.

    Args:
        tensors: of this process, by name.
        held: with its group.
        keep: False to only take part, and hold nothing.

    Returns:
        The tensors by name; those that several stages have, as the first of them has them. Nothing for another copy of
        the model than the first: one will do.
    """
    if held.copy:
        return {}
    mine = {name: (tuple(tensor.shape), tensor.dtype, tensor.device.type) for name, tensor in tensors.items()}
    every: list[Any] = [None] * distributed.get_world_size(held.group)
    distributed.all_gather_object(every, mine, group=held.group)
    found = {}
    here = distributed.get_group_rank(held.group, distributed.get_rank())
    device = next((tensor.device for tensor in tensors.values()), torch.device('cpu'))
    owners = {name: stage for stage, names in reversed(list(enumerate(every))) for name in names}
    for name in sorted(owners):
        shape, dtype, kind = every[owners[name]][name]
        own = owners[name] == here
        whole = tensors[name].contiguous() if own else torch.empty(shape, dtype=dtype, device=device)
        # An optimizer keeps its counts of steps on the CPU, which no accelerator's collective takes.
        moved = whole.to(device) if kind == 'cpu' else whole
        distributed.broadcast(moved, group_src=owners[name], group=held.group)
        if keep:
            found[name] = moved.to('cpu')
    return found


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


def here_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor; nothing of one of another stage.

    >>> here_of(torch.ones(1)), here_of(torch.ones(1, device='meta'))
    (tensor([1.]), tensor([]))
    """
    if tensor.is_meta:
        return torch.zeros(0)
    if hasattr(tensor, 'ds_tensor'):  # DeepSpeed's name for the part
        return tensor.ds_tensor
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds a part of the module alone.

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    if held_of(module) is not None:
        return True
    return any(isinstance(each, DTensor) or hasattr(each, 'ds_tensor') for each in module.parameters())


def like(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, spread as another one is.

    Args:
        tensor: spread, or plain.
        whole: of the same shape; the same on all processes.

    >>> like(torch.zeros(2), torch.ones(2))
    tensor([1., 1.])
    """
    if tensor.is_meta:  # of another stage
        return tensor
    if not isinstance(tensor, DTensor) or whole.shape != tensor.shape:
        return whole
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    holder = nn.Module()
    holder.register_parameter('value', nn.Parameter(torch.empty_like(tensor), requires_grad=False))
    set_model_state_dict(holder, {'value': whole}, options=StateDictOptions(full_state_dict=True))
    return holder.get_parameter('value').data
