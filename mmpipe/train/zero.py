"""DeepSpeed's ZeRO: optimizer state (1), gradients too (2), parameters too (3) in parts, by `deepspeed.initialize`.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models". DeepSpeed owns the
optimizer and the gradients, which leads to two differences from other ways of spreading: all parameters are stepped
together, so that a head without a label in a step decays as if it had one; and a loss that is not finite ends the
training, as gradients cannot be taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmpipe.data.ranks import world
from mmpipe.errors import ConfigError, TrainError
from mmpipe.models.multitask import MultitaskModel
from mmpipe.train.distributed import same_on_all
from mmpipe.train.precision import autocast
from mmpipe.train.strategy import OWNED, OverRanks, OwnedState, Pass

STAGES = {'zero1': 1, 'zero2': 2, 'zero3': 3}


def check_beside(beside: nn.Module) -> None:
    """Refuse what DeepSpeed cannot send.

    Args:
        beside: what is trained beside the model.

    Raises:
        ConfigError: a parameter without an axis.

    >>> check_beside(nn.Linear(1, 1))
    """
    wrong = [name for name, parameter in beside.named_parameters() if parameter.ndim == 0]
    if wrong:
        raise ConfigError(
            f'{type(beside).__name__} has a parameter without an axis ({wrong[0]}), which DeepSpeed cannot send: pass '
            f"balancing='fixed', or sharding='fsdp'."
        )


class Zero(OverRanks):
    """See `mmpipe.train.strategy.Strategy`.

    Args:
        sharding: of `STAGES`.
        device: of the training.
        precision: of the training; weights stay float32.
        clip: largest norm of the gradient.
        beside: what is trained beside the model, such as a balancing.
    """

    def __init__(
        self, sharding: str, *, device: torch.device, precision: str, clip: float | None, beside: nn.Module
    ) -> None:
        import deepspeed

        self.library: Any = deepspeed
        self.stage, self.device, self.precision, self.most = STAGES[sharding], device, precision, clip
        self.beside = beside
        self.engine: Any = None

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`."""
        same_on_all(model, parameters=True)
        if isinstance(model, MultitaskModel):
            model.every_encoder = True  # a rank that leaves an encoder out would be waited for
        self.model = model

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.adopt`: parts of flattened parameters take the places of the parameters in it.

        Raises:
            TrainError: another stage was applied than was asked for.
        """
        logging.getLogger('DeepSpeed').setLevel(logging.WARNING)
        config = {
            'train_micro_batch_size_per_gpu': 1,  # a number that DeepSpeed wants, and nothing reads
            'gradient_accumulation_steps': 1,  # `passes` says itself where a step ends
            'gradient_clipping': self.most or 0.0,
            'zero_optimization': {'stage': self.stage},
            'zero_allow_untested_optimizer': True,
            'zero_force_ds_cpu_optimizer': False,
        }
        self.engine, *_ = self.library.initialize(
            model=_Both(self.model, self.beside), optimizer=optimizer, config=config, dist_init_required=False
        )
        if self.engine.zero_optimization_stage() != self.stage:
            raise TrainError(f'DeepSpeed applied stage {self.engine.zero_optimization_stage()}, not {self.stage}.')

    def callable(self, model: nn.Module) -> nn.Module:
        """See `Strategy.callable`."""
        return model

    def passes(self, micro: list[dict[str, Any]], one: Pass, *, even: bool) -> torch.Tensor | None:
        """See `Strategy.passes`."""
        taken = None
        self.due = one.learns
        while micro and one.learns:
            batch = one.laid(micro.pop(0))
            self.engine.set_gradient_accumulation_boundary(not micro)
            with autocast(self.precision, self.device):
                output = self.engine(batch)
            total, part = one.loss(output, batch)
            # Losses are divided by the labels of all ranks, so gradients are to be summed; DeepSpeed takes their mean.
            self.engine.backward(total * self.ranks, scale_wrt_gas=False)
            taken = part if taken is None else taken + part
        micro.clear()
        return taken

    def reduce(self, parameters: Sequence[nn.Parameter], *, even: bool) -> None:
        """See `Strategy.reduce`: DeepSpeed has done it."""

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
        """See `Strategy.clip`: DeepSpeed does it in its step, so no norm is known here."""
        return torch.zeros((), device=self.device)

    def step(self, bad: torch.Tensor) -> bool:
        """See `Strategy.step`.

        Raises:
            TrainError: the loss is not finite.
        """
        if bad:
            raise TrainError(
                'The loss is not finite, and DeepSpeed has its gradients already, so that this step cannot be left '
                'out: lower lr, set clip=1.0, or look for extreme values in the inputs; the last checkpoint is good.'
            )
        if self.due:
            self.engine.step()
        return True

    @contextmanager
    def whole(self, model: nn.Module, *, loads: bool = False) -> Iterator[None]:
        """See `Strategy.whole`."""
        gathered = self.library.zero.GatheredParameters(
            list(model.parameters()) if self.stage == STAGES['zero3'] else [], modifier_rank=0 if loads else None
        )
        with gathered:
            yield
        if loads:
            self.engine.optimizer.refresh_fp32_params()  # it steps copies of the weights

    @property
    def owned(self) -> OwnedState:
        """See `Strategy.owned`."""
        return _Partitions(self.engine.optimizer, f'zero{self.stage} over {self.ranks} processes')


class _Partitions:
    """See `mmpipe.train.strategy.OwnedState`: what the torch optimizer inside keeps of each flattened parameter."""

    def __init__(self, owner: Any, made_for: str) -> None:
        flat = getattr(owner, 'fp32_partitioned_groups_flat', None)  # of stage 3
        self.parameters = list(owner.single_partition_of_fp32_groups if flat is None else flat)
        self.inner, self.prefix = owner.optimizer, f'{OWNED}{made_for}/{world()[0]}/'

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f'{self.prefix}{position}/{key}': torch.as_tensor(value).detach()
            for position, parameter in enumerate(self.parameters)
            for key, value in self.inner.state[parameter].items()
        }

    def room(self, stored: Sequence[str], *, source: str) -> dict[str, torch.Tensor]:
        mine = [name for name in stored if name.startswith(self.prefix)]
        if stored and not mine:
            made_for = stored[0].removeprefix(OWNED).split('/')[0] if stored[0].startswith(OWNED) else 'torch'
            raise TrainError(
                f'The optimizer of {source} was that of {made_for}, and this training is '
                f'{self.prefix.removeprefix(OWNED).split("/")[0]}: resume as it was, or start from its weights with '
                f'continue_from=.'
            )
        # A step count is one number; the rest is as long as the flattened parameter.
        found = {}
        for name in mine:
            position, key = name.removeprefix(self.prefix).split('/')
            like = self.parameters[int(position)]
            found[name] = torch.zeros(()) if key == 'step' else torch.empty_like(like).detach()
        return found

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            position, key = name.removeprefix(self.prefix).split('/')
            self.inner.state[self.parameters[int(position)]][key] = tensor


class _Both(nn.Module):
    """DeepSpeed wants all that an optimizer has in one module."""

    def __init__(self, model: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.model, self.beside = model, beside

    def forward(self, batch: Any) -> Any:
        return self.model(batch)
