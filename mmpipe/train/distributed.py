"""The few collectives that the trainer needs; each does nothing in a world of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn

from mmpipe.data.ranks import data_group, world

MAX_DIMENSIONS = 8  # behind the first, of what is gathered
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
"""By number, in which form ranks tell each other."""


def sum_over_ranks(values: torch.Tensor, *, group: Any = None) -> torch.Tensor:
    """The element-wise sum over all ranks, the same on each.

    Args:
        values: of this rank; replaced.
        group: of other processes than the ranks.

    >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if group is not None or world()[1] > 1:
        distributed.all_reduce(values, group=data_group() if group is None else group)
    return values


def processes() -> int:
    """How many there are, whether they see other rows or not.

    >>> processes()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_gradients(parameters: Iterable[nn.Parameter], *, group: Any = None) -> None:
    """Replace each gradient by its sum over ranks, in one message.

    A parameter that some ranks have no gradient for counts as zeros there; one that no rank has a gradient for keeps
    none, so that the optimizer leaves it alone.

    Args:
        parameters: the same on each rank.
        group: of other processes than the ranks.

    >>> weight = nn.Parameter(torch.zeros(1)); weight.grad = torch.ones(1)
    >>> sum_gradients([weight]); weight.grad
    tensor([1.])
    """
    if group is None and world()[1] == 1:
        return
    parameters = list(parameters)
    if not parameters:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    sum_over_ranks(used, group=group)
    wanted = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    if not wanted:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in wanted])
    sum_over_ranks(flat, group=group)
    for parameter, part in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def same_on_all(module: nn.Module, *, parameters: bool) -> None:
    """Give every rank the buffers (and parameters) of rank 0.

    >>> same_on_all(nn.Linear(1, 1), parameters=True)
    """
    if processes() == 1:
        return
    tensors = list(module.buffers()) + (list(module.parameters()) if parameters else [])
    for tensor in tensors:
        distributed.broadcast(tensor.data, 0)


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, joined in order of ranks, on every rank.

    Args:
        values: `[n, ...]`; ranks may hold different numbers of rows. A rank with none may give any empty tensor on its
            device: shape and dtype come from a rank that has some.

    >>> gather_rows(torch.tensor([1, 2]))
    tensor([1, 2])
    """
    _, size = world()
    if size == 1:
        return values
    about = [torch.zeros(2 + MAX_DIMENSIONS, dtype=torch.int64, device=values.device) for _ in range(size)]
    mine = [len(values), DTYPES.index(values.dtype), *values.shape[1:]]
    mine += [-1] * (len(about[0]) - len(mine))
    distributed.all_gather(about, torch.tensor(mine, device=values.device), group=data_group())
    described = [entry.tolist() for entry in about]
    lengths = [entry[0] for entry in described]
    if not any(lengths):
        return values
    _, code, *rest = next(entry for entry in described if entry[0])
    dtype, shape = DTYPES[code], [n for n in rest if n >= 0]
    # Collectives want one shape, and not every backend knows bool.
    padded = values.new_zeros((max(lengths), *shape), dtype=torch.uint8 if dtype == torch.bool else dtype)
    if len(values):
        padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(parts, padded, group=data_group())
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).to(dtype)


def from_rank_0(value: str) -> str:
    """A short string of rank 0, on every rank.

    >>> from_rank_0('runs/shop/0001')
    'runs/shop/0001'
    """
    if processes() == 1:
        return value
    device = torch.accelerator.current_accelerator() if distributed.get_backend() != 'gloo' else None
    text = value.encode().ljust(4096, b'\0')
    message = torch.tensor(list(text), dtype=torch.uint8, device=device)
    distributed.broadcast(message, 0)
    return bytes(message.cpu().tolist()).rstrip(b'\0').decode()
