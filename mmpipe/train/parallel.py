"""How a training is spread over processes: a number per way of spreading, whose product is the number of processes.

Parallel()                            every process has the model, and rows of its own (DDP)
Parallel(dp_shard=4)                  parameters, gradients and optimizer state in four parts (FSDP2)
Parallel(dp_replicate=2, dp_shard=4)  twice (HSDP)
Parallel(tp=2)                        layers in two parts, by the model's own plan; both processes see the same rows
Parallel(dp_shard=2, tp=2)            both
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from mmpipe.data.ranks import Sharing, sharing
from mmpipe.errors import ConfigError
from mmpipe.train.group import limit_waiting

DIMENSIONS = ('dp_replicate', 'dp_shard', 'tp')


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How many processes share a training, and how.

    Args:
        dp_replicate: copies of the model (or of its parts together) that see other rows; all processes that are left
            when None.
        dp_shard: parts of parameters, gradients and optimizer state; each process sees other rows and gathers the
            parameters of a layer while it needs them.
        tp: parts of the layers that the model's `tensor_plan()` names; these processes see the same rows.

    Raises:
        ConfigError: a number below 1.

    >>> Parallel(dp_shard=2).sizes(processes=4)
    (2, 2, 1)
    """

    dp_replicate: int | None = None
    dp_shard: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            if (name, value) != ('dp_replicate', None) and (not isinstance(value, int) or value < 1):
                raise ConfigError(f'Parallel({name}={value!r}): a whole number from 1 on is meant.')

    def sizes(self, *, processes: int) -> tuple[int, int, int]:
        """Processes along `DIMENSIONS`.

        Raises:
            ConfigError: their product is another number than that of the processes.
        """
        inner = self.dp_shard * self.tp
        replicate = self.dp_replicate or max(processes // inner, 1)
        if replicate * inner != processes:
            raise ConfigError(
                f'{self} wants {"a multiple of " if self.dp_replicate is None else ""}{replicate * inner} processes, '
                f'and there are {processes}. Start as many (torchrun --nproc-per-node), or give other numbers.'
            )
        return replicate, self.dp_shard, self.tp

    @property
    def whole(self) -> bool:
        """Whether every process holds the whole model."""
        return self.dp_shard == self.tp == 1


WHOLE = Parallel()
"""Every process has the model."""


@contextmanager
def laid_out(parallel: Parallel, device: torch.device) -> Iterator[Any]:
    """Lay processes out, and share the data accordingly meanwhile.

    Args:
        parallel: how.
        device: of the training.

    Yields:
        A `DeviceMesh` with `DIMENSIONS`; None where every process holds the whole model.

    Raises:
        ConfigError: the number of processes does not fit.

    >>> with laid_out(Parallel(), torch.device('cpu')) as mesh:
    ...     print(mesh)
    None
    """
    running = distributed.is_available() and distributed.is_initialized()
    sizes = parallel.sizes(processes=distributed.get_world_size() if running else 1)
    if parallel.whole:
        yield None
        return
    mesh = distributed.init_device_mesh(device.type, sizes, mesh_dim_names=DIMENSIONS)
    replicate, shard, _ = mesh.get_coordinate() or (0, 0, 0)
    group = mesh['dp_replicate', 'dp_shard']._flatten().get_group()
    limit_waiting([*mesh.get_all_groups(), group])
    with sharing(Sharing(replicate * sizes[1] + shard, sizes[0] * sizes[1], group)):
        yield mesh
