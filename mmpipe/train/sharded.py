"""A model in parts over processes: FSDP2's `fully_shard` by block, and tensor parallelism by the model's own plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from mmpipe.errors import ConfigError, TrainError
from mmpipe.models.contract import layers_of
from mmpipe.models.spread import mesh_of, whole_of
from mmpipe.train.distributed import same_on_all, sum_gradients
from mmpipe.train.strategy import OverRanks

NORMALISING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Sharded(OverRanks):
    """See `mmpipe.train.strategy.Strategy`; parameters become `DTensor`s in place, and the model itself is called.

    Args:
        mesh: of `mmpipe.train.parallel.DIMENSIONS`.
        precision: of the training: with 'bf16', blocks gather their parameters in it, but for those of normalising
            layers; sums of gradients stay float32. Autocast then computes what it does in one process.
        offload: keep what is sharded in the host's memory.
    """

    def __init__(self, mesh: Any, *, precision: str = 'fp32', offload: bool = False) -> None:
        self.mesh, self.precision, self.offload = mesh, precision, offload
        self.replicate, self.shard, self.tensor = (mesh[name].size() for name in ('dp_replicate', 'dp_shard', 'tp'))
        self._parts: list[Any] = []

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`.

        Raises:
            ConfigError: as `tensor_plan_of`.
            TrainError: what was asked for was not applied.
        """
        same_on_all(model, parameters=True)
        if hasattr(model, 'every_encoder'):
            model.every_encoder = True  # type: ignore[assignment]  # a rank that leaves an encoder out would be waited for
        if self.tensor > 1:
            parallelize_module(model, self.mesh['tp'], tensor_plan_of(model))
        if self.replicate * self.shard > 1:
            mesh = self.mesh['dp_replicate', 'dp_shard'] if self.replicate > 1 else self.mesh['dp_shard']
            self._shard(model, [block for part in encoders_of(model) for block in layers_of(part)], mesh)
        self._assert_applied(model)

    def _shard(self, model: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
        # Autocast chooses what an operation takes: with inputs cast too, what is added from block to block would lose
        # bits that it keeps in one process. It normalises in float32, and a CPU has no kernel for weights of another.
        full = MixedPrecisionPolicy(cast_forward_inputs=False)
        half = replace(full, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = half if self.precision == 'bf16' else full
        # Not yet run: it needs a CUDA device.
        options: dict[str, Any] = {'offload_policy': CPUOffloadPolicy()} if self.offload else {}
        wrapped = 1
        for block in blocks:
            norms: list[nn.Module] = [
                part for part in block.modules() if isinstance(part, NORMALISING) and list(part.parameters())
            ]
            if policy is half and norms and norms != [block]:  # of one block together, in one message
                fully_shard(norms, mesh=mesh, mp_policy=full, **options)
                wrapped += len(norms)
            fully_shard(block, mesh=mesh, mp_policy=full if norms == [block] else policy, **options)
            wrapped += 1
        fully_shard(model, mesh=mesh, **options)
        self._parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in self._parts:  # losses are divided by the labels of all ranks, so gradients are summed
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        if len(self._parts) != wrapped:
            raise TrainError(f'fully_shard wrapped {len(self._parts)} modules of {wrapped}.')

    def whole(self, model: nn.Module, *, loads: bool = False) -> AbstractContextManager[Any]:
        """See `Strategy.whole`: an evaluation leaves what no block holds gathered, as no backward pass follows it."""
        for part in self._parts:
            part.reshard()
        return nullcontext()

    def callable(self, model: nn.Module) -> nn.Module:
        """See `Strategy.callable`."""
        return model

    def micro(self, *, last: bool, even: bool) -> AbstractContextManager[Any]:
        """See `OverRanks.micro`."""
        for part in self._parts:
            part.set_requires_gradient_sync(last, recurse=False)
        return nullcontext()

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`: of what lies beside the model, such as a balancing; `fully_shard` does the rest."""
        sum_gradients([parameter for parameter in parameters if mesh_of(parameter) is None])

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """See `Strategy.clip`."""
        # One norm per mesh: torch does not mix tensors of several in one operation.
        groups: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                groups.setdefault(mesh_of(parameter), []).append(parameter)
        norms = [
            whole_of(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]))
            for group in groups.values()
        ]
        total = torch.linalg.vector_norm(torch.stack(norms))
        for group in groups.values():
            nn.utils.clip_grads_with_norm_(group, norm, total)
        return total

    def _assert_applied(self, model: nn.Module) -> None:
        """A silent fallback would train something else, or with all of the memory that was to be saved."""
        whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
        if self._parts and whole:
            raise TrainError(f'{whole[0]} is not sharded, though dp_shard={self.shard} was asked for.')
        meshes = [mesh for mesh in map(mesh_of, model.parameters()) if mesh is not None]
        if self.tensor > 1 and not any('tp' in mesh.mesh_dim_names for mesh in meshes):
            raise TrainError(f'No parameter is in parts, though tp={self.tensor} was asked for.')


def encoders_of(model: nn.Module) -> list[nn.Module]:
    """Those of a model that has several; else the model itself.

    >>> encoders_of(nn.Linear(1, 1))
    [Linear(in_features=1, out_features=1, bias=True)]
    """
    encoders = getattr(model, 'encoders', None)
    return list(encoders.values()) if isinstance(encoders, nn.ModuleDict) else [model]


def tensor_plan_of(model: nn.Module) -> dict[str, ParallelStyle]:
    """Which modules tensor parallelism cuts, and how: by the model's own `tensor_plan()`, or else by its encoders'.

    Args:
        model: before it is spread.

    Raises:
        ConfigError: there is no plan, or it names a module that is not there.

    >>> tensor_plan_of(nn.Linear(1, 1))
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: Parallel(tp=...) needs a plan: a method tensor_plan() of Linear or of an encoder of it
    that gives {name of a module: a style of torch.distributed.tensor.parallel}, such as {'mlp.fc1': ColwiseParallel()}.
    """
    names = {id(part): name for name, part in model.named_modules()}
    if callable(getattr(model, 'tensor_plan', None)):
        found = dict(model.tensor_plan())  # type: ignore[operator]
    else:
        found = {
            f'{names[id(part)]}.{inner}': style
            for part in encoders_of(model)
            if callable(getattr(part, 'tensor_plan', None))
            for inner, style in part.tensor_plan().items()  # type: ignore[operator]
        }
    if not found:
        raise ConfigError(
            f'Parallel(tp=...) needs a plan: a method tensor_plan() of {type(model).__name__} or of an encoder of it '
            f'that gives {{name of a module: a style of torch.distributed.tensor.parallel}}, such as '
            f"{{'mlp.fc1': ColwiseParallel()}}."
        )
    for name in found:  # torch passes over those that fit nothing
        if not fnmatch.filter(names.values(), name):
            raise ConfigError(f'tensor_plan() names {name!r}, which is no module of {type(model).__name__}.')
    return found
