"""What goes into a message, and back into a model: parameters, declared buffers, declared metrics, and nothing else.

| part of a message | from the server | from a client |
|---|---|---|
| arrays | parameters of the model, and its buffers where they are shared | the same, trained |
| config | round, and settings that the server may set | |
| metrics | | a weight for averages, and `task.metric` as declared |

What a client cannot do is told by the name of the error alone: texts of errors name rows, fields and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError, ModelError, TrainError

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Message, MetricRecord

ARRAYS, CONFIG, METRICS = 'arrays', 'config', 'metrics'  # names of the records, as Flower's strategies have them
WEIGHT = 'num-examples'  # what Flower's strategies weight averages by, whatever it holds
BUFFERS = ('local', 'shared')


def shared_names(model: nn.Module, buffers: str) -> list[str]:
    """Names of what crosses: every parameter once, and buffers of floats where they are shared.

    >>> shared_names(nn.BatchNorm1d(1), 'local'), shared_names(nn.BatchNorm1d(1), 'shared')
    (['weight', 'bias'], ['weight', 'bias', 'running_mean', 'running_var'])
    """
    names = [name for name, _ in model.named_parameters()]
    if buffers == 'shared':
        kept = model.state_dict()
        names += [name for name, each in model.named_buffers() if name in kept and each.is_floating_point()]
    return names


def to_arrays(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> ArrayRecord:
    """Tensors as Flower sends them: float32 whatever they are here, for sums of several clients.

    A scalar goes as a vector of one: Flower's clipping and noise work in place, which numbers of NumPy do not take.

    >>> list(to_arrays({'weight': torch.ones(2, dtype=torch.bfloat16)}, ['weight']).to_torch_state_dict().values())
    [tensor([1., 1.])]
    """
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(np.atleast_1d(tensors[name].detach().float().cpu().numpy())) for name in names})


def from_arrays(arrays: ArrayRecord, model: nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """What came, as tensors like the model's.

    Args:
        arrays: of a message.
        model: what they are for.
        names: what was to come.

    Raises:
        ModelError: another name or shape, or a value that is not finite.

    >>> model = nn.Linear(1, 1)
    >>> from_arrays(to_arrays(model.state_dict(), ['bias']), model, ['weight', 'bias'])
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: The arrays that came do not fit Linear: they lack 'weight'.
    Give server and clients the same factory, arguments and buffers=.
    """
    own, found = model.state_dict(), {}
    way_out = 'Give server and clients the same factory, arguments and buffers=.'
    for name in arrays:
        if name not in names:
            raise ModelError(f'The arrays that came do not fit {type(model).__name__}: they have {name!r}. {way_out}')
    for name in names:
        if name not in arrays:
            raise ModelError(f'The arrays that came do not fit {type(model).__name__}: they lack {name!r}. {way_out}')
        value = torch.from_numpy(np.array(arrays[name].numpy()))
        if own[name].ndim == 0 and value.numel() == 1:
            value = value.reshape(())
        if value.shape != own[name].shape:
            raise ModelError(
                f'The arrays that came do not fit {type(model).__name__}: {name!r} has shape {list(value.shape)} '
                f'there and {list(own[name].shape)} here. {way_out}'
            )
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f'The arrays that came hold a value of {name!r} that is not finite: a client diverged, or noise did. '
                f'Lower the learning rate, or use a strategy that leaves such clients out.'
            )
        found[name] = value.to(own[name].dtype)
    return found


def check_declared(metrics: Sequence[str]) -> tuple[str, ...]:
    """Refuse what names no metric of a task.

    Raises:
        ConfigError: not of the form 'task.metric', or a count of rows.

    >>> check_declared(['kind.accuracy'])
    ('kind.accuracy',)
    """
    if isinstance(metrics, str) or any('.' not in name for name in metrics):
        raise ConfigError(f"metrics={metrics!r}: a list of 'task.metric' is meant, such as ['kind.accuracy'].")
    return tuple(metrics)


def to_metrics(found: Mapping[str, Mapping[str, Any]], declared: Sequence[str], *, weight: float) -> MetricRecord:
    """The declared metrics, and what averages are weighted by.

    Raises:
        TrainError: a metric that is not there or not defined, such as any of no labelled row: it would spoil averages.

    >>> dict(to_metrics({'kind': {'accuracy': 0.5, 'n': 2}}, ['kind.accuracy'], weight=1.0))
    {'num-examples': 1.0, 'kind.accuracy': 0.5}
    """
    from flwr.app import MetricRecord

    values: dict[str, float] = {WEIGHT: weight}
    for name in declared:
        task, _, metric = name.rpartition('.')
        value = found.get(task, {}).get(metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            known = ', '.join(f'{each}.{key}' for each, those in found.items() for key in those) or 'none'
            raise TrainError(f'Metric {name!r} is {value} on these rows; there are {known}.')
        values[name] = float(value)
    return MetricRecord(values)  # type: ignore[arg-type]


def refusal(error: Exception, message: Message) -> Message:
    """The answer of a client that cannot do what it was asked: the kind of the error, not its text."""
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode

    reason = f"{type(error).__name__} in the client; the client's log says more."
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)
