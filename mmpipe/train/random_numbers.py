"""The global generators of torch, numpy and Python, which dropout, losses and modules of users draw from.

They are seeded per step, and given back afterwards as they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mmpipe.data.order import mix
from mmpipe.data.xla import seed_xla


@contextmanager
def borrowed_generators(device: torch.device) -> Iterator[None]:
    """Inside, the global generators can be seeded; their states come back at the end.

    Those of Python's `random`, of `numpy.random`, and of torch for the CPU and for `device`.

    >>> with borrowed_generators(torch.device('cpu')):
    ...     seed_generators(torch.device('cpu'), 0)
    """
    accelerated = device.type not in ('cpu', 'mps', 'meta', 'xla')
    devices = (
        [device.index if device.index is not None else torch.accelerator.current_device_index()] if accelerated else []
    )
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices, device_type=device.type if accelerated else 'cuda'):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_generators(device: torch.device, *numbers: int) -> None:
    """Seed the global generators (see `borrowed_generators`) by a hash of `numbers`.

    That of torch not by `torch.manual_seed`: where CUDA is built in but not in use, that queues a call with its stack
    trace every time.

    >>> draws = []
    >>> with borrowed_generators(torch.device('cpu')):
    ...     for _ in range(2):
    ...         seed_generators(torch.device('cpu'), 0, 1)
    ...         draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    >>> draws[0] == draws[1]
    True
    """
    seed = mix(*numbers) >> 1
    torch.default_generator.manual_seed(seed)
    if device.type == 'xla':
        seed_xla(seed)
    elif device.type not in ('cpu', 'meta'):
        torch.get_device_module(device).manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
