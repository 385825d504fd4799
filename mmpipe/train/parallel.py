"""How a training is spread over processes: a number per way of spreading, whose product is the number of processes.

Parallel()                            every process has the model, and rows of its own (DDP)
Parallel(dp_shard=4)                  parameters, gradients and optimizer state in four parts (FSDP2)
Parallel(dp_replicate=2, dp_shard=4)  twice (HSDP)
Parallel(tp=2)                        layers in two parts, by the model's own plan; both processes see the same rows
Parallel(dp_shard=2, tp=2)            both
Parallel(pp=2)                        layers in two stages that micro-batches pass through; both see the same rows
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from mmpipe.data.ranks import Sharing, sharing
from mmpipe.errors import ConfigError, MissingExtraError, require
from mmpipe.train.group import limit_waiting

SHARDINGS = ('fsdp', 'zero1', 'zero2', 'zero3', 'yafsdp')
DIMENSIONS = ('pp', 'dp_replicate', 'dp_shard', 'tp')
"""From the outside in: what talks most lies closest together, so that it stays on one machine."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How many processes share a training, and how.

    Args:
        dp_replicate: copies of the model (or of its parts together) that see other rows; all processes that are left
            when None.
        dp_shard: parts of parameters, gradients and optimizer state; each process sees other rows and gathers the
            parameters of a layer while it needs them.
        tp: parts of the layers that the model's `tensor_plan()` names; these processes see the same rows.
        sharding: who makes the parts of `dp_shard`: 'fsdp' (torch's `fully_shard`); 'zero1', 'zero2' or 'zero3'
            (DeepSpeed: optimizer state in parts; gradients too; parameters too), or 'yafsdp' (the package YaFSDP, on
            CUDA). These go with nothing else.
        offload: keep parameters, gradients and optimizer state of 'fsdp' in the host's memory, for a CUDA device that
            they do not fit on; the optimizer steps there.
        pp: stages of the largest encoder that says how to cut it (`pipeline_plan()`); micro-batches pass through them,
            at least as many per step (`accumulate`) as there are stages. Goes with `dp_replicate` alone.

    Raises:
        ConfigError: a number below 1, or ways of spreading that do not go together.

    >>> Parallel(dp_shard=2).sizes(processes=4)
    (1, 2, 2, 1)
    """

    dp_replicate: int | None = None
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    sharding: str = 'fsdp'
    offload: bool = False

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if (name, value) != ('dp_replicate', None) and not whole:
                raise ConfigError(f'Parallel({name}={value!r}): a whole number from 1 on is meant.')
        if self.sharding not in SHARDINGS:
            raise ConfigError(f'Parallel(sharding={self.sharding!r}) is none of {", ".join(map(repr, SHARDINGS))}.')
        if not isinstance(self.offload, bool):
            raise ConfigError(f'Parallel(offload={self.offload!r}): True or False is meant.')
        if self.sharding != 'fsdp':
            if self.dp_shard == 1:
                raise ConfigError(f'{self}: say into how many parts by dp_shard.')
            if self.offload or self.pp * self.tp * (self.dp_replicate or 1) > 1:
                raise ConfigError(f'{self}: {self.sharding} goes with dp_shard alone; leave out the rest.')
        if self.offload and self.dp_shard == 1:
            raise ConfigError(f'{self}: what is in parts is offloaded, so pass dp_shard as well.')
        if self.pp > 1 and self.dp_shard * self.tp > 1:
            raise ConfigError(f'{self}: stages (pp) hold whole layers, so leave out dp_shard and tp, or pp.')

    def sizes(self, *, processes: int) -> tuple[int, int, int, int]:
        """Processes along `DIMENSIONS`.

        Raises:
            ConfigError: their product is another number than that of the processes.
        """
        inner = self.pp * self.dp_shard * self.tp
        replicate = self.dp_replicate or (max(processes // inner, 1) if self.sharding == 'fsdp' else 1)
        if replicate * inner != processes:
            raise ConfigError(
                f'{self} wants {"a multiple of " if self.dp_replicate is None else ""}{replicate * inner} processes, '
                f'and there are {processes}. Start as many (torchrun --nproc-per-node), or give other numbers.'
            )
        return self.pp, replicate, self.dp_shard, self.tp

    @property
    def whole(self) -> bool:
        """Whether every process holds the whole model."""
        return self.dp_shard == self.tp == self.pp == 1


WHOLE = Parallel()
"""Every process has the model."""


def check_installed(parallel: Parallel, device: torch.device) -> None:
    """Refuse a way of sharding whose package or device is not there.

    Args:
        parallel: how.
        device: of the training.

    Raises:
        MissingExtraError: DeepSpeed or YaFSDP is not installed; the message says how to get it.
        ConfigError: a device that it does not work on.

    >>> check_installed(Parallel(dp_shard=2), torch.device('cpu'))
    """
    what = f'Parallel(sharding={parallel.sharding!r})'
    if parallel.sharding.startswith('zero'):
        require('deepspeed', 'deepspeed', why=what)
    if parallel.sharding == 'yafsdp' and importlib.util.find_spec('ya_fsdp') is None:
        raise MissingExtraError(
            f'{what} needs ya_fsdp, which is not installed, and which no package index has: '
            f"pip install 'git+https://github.com/yandex/YaFSDP', or leave out sharding (FSDP2)."
        )
    on_cuda = {'yafsdp': parallel.sharding == 'yafsdp', 'offload': parallel.offload}
    for name in [name for name, asked in on_cuda.items() if asked and device.type != 'cuda']:
        raise ConfigError(f"{parallel}: {name} is for CUDA devices, and this training is on '{device}'.")


@contextmanager
def laid_out(parallel: Parallel, device: torch.device) -> Iterator[Any]:
    """Lay processes out, and share the data accordingly meanwhile.

    Args:
        parallel: how.
        device: of the training.

    Yields:
        A `DeviceMesh` with `DIMENSIONS`; None where every process holds the whole model.

    Raises:
        ConfigError: the number of processes does not fit, or as `check_installed`.
        MissingExtraError: as `check_installed`.

    >>> with laid_out(Parallel(), torch.device('cpu')) as mesh:
    ...     print(mesh)
    None
    """
    running = distributed.is_available() and distributed.is_initialized()
    sizes = parallel.sizes(processes=distributed.get_world_size() if running else 1)
    if parallel.whole:
        yield None
        return
    check_installed(parallel, device)
    mesh = distributed.init_device_mesh(device.type, sizes, mesh_dim_names=DIMENSIONS)
    _, replicate, shard, _ = mesh.get_coordinate() or (0, 0, 0, 0)
    group = mesh['dp_replicate', 'dp_shard']._flatten().get_group()
    limit_waiting([*mesh.get_all_groups(), group])
    _, replicates, shards, _ = sizes
    with sharing(Sharing(replicate * shards + shard, replicates * shards, group)):
        yield mesh
