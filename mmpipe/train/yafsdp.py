"""An adapter to YaFSDP, which follows the shape of FSDP2 (github.com/yandex/YaFSDP).

Not yet run: YaFSDP needs CUDA devices. What is tested is what it is called with, against a stand-in.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mmpipe.errors import TrainError
from mmpipe.train.sharded import Sharded
from mmpipe.train.strategy import OwnedState


class YaSharded(Sharded):
    """As `Sharded`, with the `fully_shard` of `ya_fsdp` in the place of torch's."""

    def _shard(self, model: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
        library: Any = importlib.import_module('ya_fsdp')
        if library.fully_shard is None:  # what the package sets where its own imports fail
            raise TrainError(f'ya_fsdp cannot be used with torch {torch.__version__}; it has logged why. Use FSDP2.')
        low = self.precision == 'bf16'
        policy = (
            library.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if low
            else library.MixedPrecisionPolicy()
        )
        for block in blocks:
            library.fully_shard(block, mesh=mesh, mp_policy=policy)
        library.fully_shard(model, mesh=mesh)
        self._parts = [part for part in model.modules() if hasattr(part, 'set_requires_gradient_sync')]
        if len(self._parts) != len(blocks) + 1:
            raise TrainError(f'ya_fsdp wrapped {len(self._parts)} modules of {len(blocks) + 1}.')
        # Checkpoints hold whole weights.
        model.set_state_dict_type(library.StateDictType.FULL_STATE_DICT)  # type: ignore[operator]

    def whole(self, model: nn.Module, *, loads: bool = False) -> AbstractContextManager[Any]:
        """See `Strategy.whole`: `state_dict` gathers whole weights by itself."""
        return nullcontext()

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`: it takes means over ranks, and losses are divided by the labels of all of them."""
        super().reduce(parameters, even=even)
        for parameter in parameters:
            if isinstance(parameter, DTensor) and parameter.grad is not None:
                parameter.grad.mul_(float(self.shard))

    @property
    def owned(self) -> OwnedState:
        """See `Strategy.owned`."""
        return _NotKept()


class _NotKept:
    """Its tensors are cut in a way of their own, and a checkpoint has the weights alone."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def room(self, stored: Sequence[str], *, source: str) -> dict[str, torch.Tensor]:
        raise TrainError(
            f'{source} cannot be resumed with YaFSDP, which keeps no state of an optimizer: start from its weights '
            f"with continue_from=, or train with sharding='fsdp'."
        )

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        raise AssertionError('there is no room')
