"""The global generators of torch, which dropout and user modules draw from: seeded per step, given back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmpipe.data.order import mix


@contextmanager
def borrowed_generators(device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators of the CPU and of `device` can be seeded; their states come back at the end.

    >>> with borrowed_generators(torch.device('cpu')):
    ...     seed_generators(torch.device('cpu'), 0)
    """
    accelerated = device.type not in ('cpu', 'mps', 'meta')
    devices = (
        [device.index if device.index is not None else torch.accelerator.current_device_index()] if accelerated else []
    )
    with torch.random.fork_rng(devices=devices, device_type=device.type if accelerated else 'cuda'):
        yield


def seed_generators(device: torch.device, *numbers: int) -> None:
    """Seed the generators of the CPU and of `device` by a hash of `numbers`.

    Not by `torch.manual_seed`: where CUDA is built in but not in use, that queues a call with its stack trace every
    time.

    >>> seed_generators(torch.device('cpu'), 0, 1); a = torch.rand(1)
    >>> seed_generators(torch.device('cpu'), 0, 1); bool(a == torch.rand(1))
    True
    """
    seed = mix(*numbers) >> 1
    torch.default_generator.manual_seed(seed)
    if device.type not in ('cpu', 'meta'):
        torch.get_device_module(device).manual_seed(seed)
