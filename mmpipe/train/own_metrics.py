"""Metrics of the user's own, such as those of torchmetrics: any object with `update`, `compute` and `reset`.

    reset()
    update(predicted, target)   the labelled rows of all ranks, on the CPU unless the object has a `device`
    compute()                   a number, a tensor of them, or {name: either}
    reset()

    task             predicted                             target
    classification   float32 [n, classes], sums of 1       int64 [n]
    multilabel       float32 [n, classes], each in [0, 1]  int64 [n, classes] of 0 and 1
    regression       float32 [n], in the target's unit     float32 [n]
    others           what the model gives                  what the field holds

Every rank is given the rows of all, so that any object is right in a world of several ranks; those of torchmetrics,
which would add up what the ranks have, are told meanwhile that there are no others. Nothing here imports torchmetrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.train.tasks import Classification, Multilabel, Regression, Task


class OwnMetric(Protocol):
    """What a metric of the user's has to have."""

    def update(self, predicted: Any, target: Any) -> Any:
        """Take in some rows."""

    def compute(self) -> Any:
        """The metric of all rows since `reset`."""

    def reset(self) -> Any:
        """Forget all rows."""


OwnMetrics = Mapping[str, Mapping[str, OwnMetric]]
"""{task: {name: metric}}"""


def check_own(metrics: OwnMetrics | None, tasks: Sequence[Task]) -> None:
    """Refuse what are no metrics of these tasks, before any row is read.

    Raises:
        ConfigError: a task that is not there, an object that lacks a method, or a name that is taken.

    >>> from mmpipe.train.tasks import regression
    >>> check_own({'price': {'bias': print}}, [regression('price')])
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: metrics={'price': {'bias': ...}} is a builtin_function_or_method without update, compute,
    reset. Pass an object that has them, such as one of torchmetrics.
    """
    by_name = {task.name: task for task in tasks}
    for name, own in (metrics or {}).items():
        if name not in by_name:
            raise ConfigError(
                f'metrics= names the task {name!r}; there are {", ".join(by_name)}. '
                f"Give {{task: {{name: metric}}}}, as in metrics={{{next(iter(by_name))!r}: {{'auroc': ...}}}}."
            )
        task = by_name[name]
        taken = {'loss', 'n', *task.metrics(np.zeros((0, *task.output_shape), np.float32), np.zeros(0, np.float32))}
        for what, metric in own.items():
            lacking = [part for part in ('update', 'compute', 'reset') if not callable(getattr(metric, part, None))]
            if lacking:
                raise ConfigError(
                    f'metrics={{{name!r}: {{{what!r}: ...}}}} is a {type(metric).__name__} without '
                    f'{", ".join(lacking)}. Pass an object that has them, such as one of torchmetrics.'
                )
            if what in taken:
                raise ConfigError(f'Task {name!r} has a metric {what!r} already: give yours another name.')


def measure_own(own: Mapping[str, OwnMetric], task: Task, output: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """The metrics of labelled rows; the objects are reset before and after.

    Args:
        own: {name: metric}.
        task: what the model was asked.
        output: of the model, float32 `[n, ...]`.
        target: `[n, ...]`.

    Returns:
        {name: number, or list of numbers}; None where there are no rows or it is not a number. What gives several by
        name has them as 'name.theirs'.

    >>> from mmpipe.train.tasks import regression
    >>> class Bias:
    ...     def reset(self): self.differences = []
    ...     def update(self, predicted, target): self.differences += (predicted - target).tolist()
    ...     def compute(self): return sum(self.differences) / len(self.differences)
    >>> measure_own({'bias': Bias()}, regression('price'), np.float32([3, 5]), np.float32([2, 4]))
    {'bias': 1.0}
    """
    result: dict[str, Any] = {}
    for name, metric in own.items():
        if len(target) == 0:
            result[name] = None
            continue
        device = getattr(metric, 'device', None) or 'cpu'
        predicted, truth = (values.to(device) for values in as_metrics_want(task, output, target))
        with _alone(metric):
            metric.reset()
            metric.update(predicted, truth)
            found = metric.compute()
            metric.reset()
        if isinstance(found, Mapping):
            result.update({f'{name}.{part}': _plain(value) for part, value in found.items()})
        else:
            result[name] = _plain(found)
    return result


def as_metrics_want(task: Task, output: np.ndarray, target: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(predicted, target) as the table at the top of this file says.

    >>> from mmpipe.train.tasks import classification
    >>> as_metrics_want(classification('kind', 2), np.float32([[0, 0]]), np.int64([1]))
    (tensor([[0.5000, 0.5000]]), tensor([1]))
    """
    predicted, truth = torch.tensor(output), torch.tensor(target)
    if isinstance(task, Classification):
        return predicted.softmax(1), truth.long()
    if isinstance(task, Multilabel):  # a snapshot's vocabulary can be shorter than the task's
        there = torch.zeros(predicted.shape, dtype=torch.int64)
        there[:, : truth.shape[1]] = truth[:, : task.outputs] > 0
        return predicted.sigmoid(), there
    return predicted, truth.float() if isinstance(task, Regression) else truth


@contextmanager
def _alone(metric: Any) -> Iterator[None]:
    """It was given the rows of all ranks, so torchmetrics must not add up the ranks once more."""
    parts = list(metric.modules()) if isinstance(metric, nn.Module) else [metric]
    asking = {part: part.distributed_available_fn for part in parts if hasattr(part, 'distributed_available_fn')}
    for part in asking:
        part.distributed_available_fn = lambda: False
    try:
        yield
    finally:
        for part, before in asking.items():
            part.distributed_available_fn = before


def _plain(value: Any) -> Any:
    """As JSON: a number, or a list of numbers; None for what is no finite number."""
    values = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
