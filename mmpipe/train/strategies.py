"""Which strategy a `Parallel` asks for."""

from __future__ import annotations

from typing import Any

import torch

from mmpipe.train.balancing import Balancing, takes_gradients
from mmpipe.train.parallel import Parallel
from mmpipe.train.pipelined import Pipelined
from mmpipe.train.sharded import Sharded
from mmpipe.train.strategy import Replicated, Strategy
from mmpipe.train.yafsdp import YaSharded
from mmpipe.train.zero import STAGES, Zero


def strategy_of(
    parallel: Parallel,
    mesh: Any,
    *,
    device: torch.device,
    precision: str,
    balancing: Balancing,
    clip: float | None = None,
) -> Strategy:
    """How a training spreads its model.

    Args:
        parallel: what was asked for.
        mesh: of `mmpipe.train.parallel.laid_out`.
        device: of the training.
        precision: of the training.
        balancing: of its losses.
        clip: largest norm of the gradient.

    >>> found = strategy_of(Parallel(), None, device=torch.device('cpu'), precision='fp32', balancing=Balancing())
    >>> type(found).__name__
    'Replicated'
    """
    if mesh is None:
        return Replicated(overlap=not takes_gradients(balancing))
    if parallel.pp > 1:
        return Pipelined(mesh, device=device, precision=precision)
    if parallel.sharding in STAGES:
        return Zero(parallel.sharding, device=device, precision=precision, clip=clip, beside=balancing)
    if parallel.sharding == 'yafsdp':
        return YaSharded(mesh, precision=precision)
    return Sharded(mesh, precision=precision, offload=parallel.offload)
