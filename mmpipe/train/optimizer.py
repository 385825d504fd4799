"""The optimizer: which parameters are decayed, how fast each layer learns, and the learning rate of a step."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mmpipe.errors import ConfigError, TrainError
from mmpipe.models.contract import layers_of
from mmpipe.models.spread import mesh_of

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Makes an optimizer of parameter groups, such as `functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)`."""
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""Makes a scheduler of an optimizer."""


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    frozen_too: bool = False,
    factory: OptimizerFactory | None = None,
) -> torch.optim.Optimizer:
    """AdamW over what is trainable, or an optimizer of your own over the same groups.

    Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019. Fused: one kernel for all parameters, which
    computes the same formula.

    Args:
        model: what is trained.
        lr: peak learning rate of AdamW.
        weight_decay: per unit of learning rate.
        layer_decay: see `parameter_groups`.
        frozen_too: take frozen parameters in, which may be trained later; without a gradient they do not move.
        factory: makes another optimizer; its own learning rate then counts.

    Raises:
        TrainError: nothing is trainable.
        ConfigError: the factory makes something else.

    >>> [len(group['params']) for group in make_optimizer(nn.Linear(2, 1), lr=0.1, weight_decay=0.1).param_groups]
    [1, 1]
    """
    groups = parameter_groups(model, weight_decay=weight_decay, layer_decay=layer_decay, frozen_too=frozen_too)
    trainable = [parameter for group in groups for parameter in group['params']]
    if not any(parameter.requires_grad for parameter in trainable):
        raise TrainError(
            f'{type(model).__name__} has no parameter to train: every one is frozen, or there are none. Unfreeze some.'
        )
    if factory is None:
        fused = all(p.device.type in ('cpu', 'cuda', 'xpu', 'mps') and p.is_floating_point() for p in trainable)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=lr, fused=fused)
    else:
        optimizer = factory(groups)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(
                f'Trainer(optimizer={name_of_factory(factory)}) made a {type(optimizer).__name__}, not a '
                f'torch.optim.Optimizer of the groups that it was given.'
            )
    for group in optimizer.param_groups:
        group['lr'] = group['initial_lr'] = group['lr'] * group.get('lr_scale', 1.0)
    return optimizer


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float | None = None, frozen_too: bool = False
) -> list[dict[str, Any]]:
    """Every parameter once, by whether it is decayed and how fast it learns.

    Vectors and numbers (biases, norms, scales) are not decayed, and neither are embeddings: rows of a table that a
    batch does not use would shrink all the same. GPT-3 and timm do so with vectors (Brown et al. 2020, appendix B;
    `timm.optim.param_groups_weight_decay`).

    Args:
        model: with `encoders`, whose layers learn slower the nearer they are to the input; or any module, as if it were
            one encoder.
        weight_decay: of the decayed ones.
        layer_decay: factor of the learning rate from one layer to the one before it, in (0, 1]: the layer d below the
            top of its encoder learns at `layer_decay ** (d + 1)` of the rate of fusion and heads (Clark et al. 2020,
            "ELECTRA", section 3.1; Bao et al. 2022, "BEiT", appendix).
        frozen_too: parameters that need no gradient now, too.

    Returns:
        Groups for an optimizer: {'params', 'weight_decay', 'lr_scale'}.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    >>> [(group['lr_scale'], len(group['params'])) for group in groups]
    [(0.25, 1), (0.25, 1), (0.5, 1), (0.5, 1)]
    """
    scales = {} if layer_decay is None else dict(_scales(model, layer_decay))
    tables = {
        p for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag) for p in part.parameters()
    }
    found: dict[tuple[float, bool, str], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad or frozen_too:
            decayed = parameter.ndim >= 2 and parameter not in tables
            # Operations on many tensors take those that are spread over the same processes.
            spread = str(mesh_of(parameter) or '')
            found.setdefault((scales.get(parameter, 1.0), decayed, spread), []).append(parameter)
    return [
        {'params': params, 'weight_decay': weight_decay if decayed else 0.0, 'lr_scale': scale}
        for (scale, decayed, _), params in sorted(
            found.items(), key=lambda each: (each[0][0], not each[0][1], each[0][2])
        )
    ]


def _scales(model: nn.Module, decay: float) -> Iterator[tuple[nn.Parameter, float]]:
    inner = getattr(model, 'model', model)  # what the trainer puts a balancing beside
    encoders = getattr(inner, 'encoders', None)
    for encoder in encoders.values() if isinstance(encoders, nn.ModuleDict) else [inner]:
        layers = layers_of(encoder)
        # What lies in no layer, such as a class token, enters at the input.
        yield from ((parameter, decay ** len(layers)) for parameter in encoder.parameters())
        for depth, layer in enumerate(reversed(layers)):
            yield from ((parameter, decay ** (depth + 1)) for parameter in layer.parameters())


def learning_rate(step: int, *, peak: float, schedule: str, warmup: int, total: int) -> float:
    """Learning rate of an optimizer step.

    Args:
        step: from 0.
        peak: highest learning rate.
        schedule: 'constant', or 'cosine' down to 0 at `total`.
        warmup: steps of linear growth before it.
        total: steps of the whole run.

    >>> [learning_rate(s, peak=1.0, schedule='cosine', warmup=2, total=6) for s in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == 'constant':
        return peak
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def scheduled(factory: SchedulerFactory, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler that a factory makes.

    Raises:
        ConfigError: it makes something else, or one whose state is no JSON, which a checkpoint could not hold.

    >>> optimizer = make_optimizer(nn.Linear(1, 1), lr=0.1, weight_decay=0.0)
    >>> type(scheduled(functools.partial(torch.optim.lr_scheduler.StepLR, step_size=5), optimizer)).__name__
    'StepLR'
    """
    made = factory(optimizer)
    if not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
        raise ConfigError(
            f'Trainer(scheduler={name_of_factory(factory)}) made a {type(made).__name__}, not a scheduler of '
            f'torch.optim.lr_scheduler that is stepped without a metric.'
        )
    try:
        json.dumps(made.state_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'Trainer(scheduler={name_of_factory(factory)}): its state_dict() is no JSON ({error}), so no checkpoint '
            f'could hold it. Use one that keeps numbers alone.'
        ) from error
    return made


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimizer's groups say besides their parameters, as JSON: learning rates, which schedulers change.

    >>> groups_of(make_optimizer(nn.Linear(1, 1), lr=0.1, weight_decay=0.0))[0]['lr']
    0.1
    """
    plain = (bool, int, float, str, type(None), tuple, list)
    return [
        {key: value for key, value in group.items() if key != 'params' and isinstance(value, plain)}
        for group in optimizer.param_groups
    ]


def set_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """What `groups_of` told, also of a model that was spread otherwise, whose groups were split in other ways."""
    if len(groups) != len(optimizer.param_groups):
        by_kind = {_kind(told): told for told in groups}
        groups = [by_kind[_kind(group)] for group in optimizer.param_groups]
    for group, told in zip(optimizer.param_groups, groups, strict=True):
        for key, value in told.items():
            group[key] = tuple(value) if isinstance(value, list) and isinstance(group.get(key), tuple) else value


def _kind(group: Mapping[str, Any]) -> tuple[Any, Any]:
    return group.get('lr_scale'), group.get('weight_decay')


def name_of_factory(factory: Any) -> str | None:
    """How a run record names an optimizer's or scheduler's factory: with the arguments of a partial.

    >>> name_of_factory(functools.partial(torch.optim.SGD, lr=0.1))
    'torch.optim.sgd.SGD(lr=0.1)'
    >>> name_of_factory(None)
    """
    if factory is None:
        return None
    given: Mapping[str, Any] = {}
    positional: tuple[Any, ...] = ()
    while isinstance(factory, functools.partial):
        given, positional, factory = {**factory.keywords, **given}, (*factory.args, *positional), factory.func
    name = f'{getattr(factory, "__module__", "?")}.{getattr(factory, "__qualname__", repr(factory))}'
    arguments = [*map(repr, positional), *(f'{key}={value!r}' for key, value in sorted(given.items()))]
    return f'{name}({", ".join(arguments)})' if arguments else name
