"""Metrics of a model on a split, per task and over the labelled rows only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.models.spread import is_sharded
from mmpipe.runs import Run
from mmpipe.train.distributed import gather_rows, sum_over_ranks
from mmpipe.train.own_metrics import OwnMetrics, check_own, measure_own
from mmpipe.train.precision import autocast
from mmpipe.train.tasks import Task


def evaluate(
    model: nn.Module,
    loader: DataLoader | Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[Task] | None = None,
    precision: str = 'fp32',
    metrics: OwnMetrics | None = None,
    call: Callable[[Mapping[str, Any]], Mapping[str, torch.Tensor]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics per task, over all ranks.

    Args:
        model: from a batch to {task name: output}; put into eval mode meanwhile.
        loader: batches of the split; an `mm.DataLoader` is read from its start without moving it.
        tasks: what to measure; the model's own when None.
        precision: 'fp32' or 'bf16' (autocast).
        metrics: {task: {name: metric}} of your own, such as those of torchmetrics: any object with `update`, `compute`
            and `reset`; see `mmpipe.train.own_metrics`.
        call: gives the outputs of a batch, where the model itself cannot, such as one in stages over processes.

    Returns:
        {task: {'loss': ..., metric: ..., 'n': labelled rows}}. A metric that is not defined, such as any on 0 rows,
        is None. Losses of regressions are in units of the training targets' variance.

    Raises:
        ConfigError: the model has no tasks and none were given, or it is a run; or metrics that are none.
        DataError, LabelError: an `mm.DataLoader` of a snapshot without a task's field, or with labels, or an order of
            its vocabulary, that the task does not know.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.models import BareModel
    >>> from mmpipe.train.tasks import regression
    >>> model = BareModel(nn.Flatten(0), inputs='price', tasks=[regression('price')])  # says what it is asked
    >>> evaluate(model, DataLoader(example_rows(), batch_size=2, device='cpu'))
    {'price': {'loss': 0.0, 'mae': 0.0, 'rmse': 0.0, 'r2': None, 'n': 1}}
    """
    wanted = tasks_of(model, tasks)
    check_own(metrics, wanted)
    if isinstance(loader, DataLoader):
        for task in wanted:
            task.check(loader.rows, what='evaluation')
    outputs: dict[str, list[torch.Tensor]] = {task.name: [] for task in wanted}
    targets: dict[str, list[torch.Tensor]] = {task.name: [] for task in wanted}
    device = loader.device if isinstance(loader, DataLoader) else device_of(model)
    # On the CPU in double precision; not every accelerator has it.
    sums = torch.zeros(len(wanted), 2, device=device, dtype=torch.float64 if device.type == 'cpu' else torch.float32)
    stds = target_stds(model)
    for batch, output in outputs_of(model, loader, wanted, precision, call=call):
        rows = []
        for task in wanted:
            mask, target = mask_of(batch, task), batch[task.field]
            loss, count = task.loss(output[task.name], target, mask, std=stds.get(task.name, 1.0))
            rows.append(torch.stack([loss, count]))
            outputs[task.name].append(output[task.name][mask].float())
            targets[task.name].append(target[mask])
        sums += torch.stack(rows)
    # A rank without rows takes part in every collective too, or the others would wait for it.
    nothing = [torch.zeros(0, device=device)]
    result: dict[str, dict[str, Any]] = {}
    for task, (loss_sum, count) in zip(wanted, sum_over_ranks(sums).tolist(), strict=True):
        output_rows = gather_rows(torch.cat(outputs[task.name] or nothing)).cpu().numpy()
        target_rows = gather_rows(torch.cat(targets[task.name] or nothing)).cpu().numpy()
        mean = loss_sum / count if count else None
        own = measure_own((metrics or {}).get(task.name, {}), task, output_rows, target_rows)
        result[task.name] = {'loss': mean, **task.metrics(output_rows, target_rows), **own, 'n': int(count)}
    return result


def predict(
    model: nn.Module, loader: DataLoader | Iterable[Mapping[str, Any]], *, precision: str = 'fp32'
) -> dict[str, Any]:
    """Outputs for every row of a split that this rank loads.

    Args:
        model: from a batch to {task name: output}; put into eval mode meanwhile.
        loader: batches.
        precision: 'fp32' or 'bf16' (autocast).

    Returns:
        {'_key': list of N keys, task: float32 numpy `[N, outputs]` or `[N]`}, in the order of the loader. Logits for
        classes, in the order of the task's `classes`; a number in the unit of the target for a regression.

    Raises:
        ConfigError: the model has no tasks, or it is a run.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.models import BareModel
    >>> from mmpipe.train.tasks import regression
    >>> model = BareModel(nn.Flatten(0), inputs='price', tasks=[regression('price')])  # says what it is asked
    >>> predict(model, DataLoader(example_rows(), batch_size=2, device='cpu'))
    {'_key': ['a', 'b'], 'price': array([1.5, 0. ], dtype=float32)}
    """
    tasks = tasks_of(model, None)
    keys: list[str] = []
    found: dict[str, list[torch.Tensor]] = {task.name: [] for task in tasks}
    for batch, output in outputs_of(model, loader, (), precision):
        keys += batch['_key']
        for name, values in found.items():
            values.append(output[name].float())
    empty = {task.name: torch.zeros(0, *task.output_shape) for task in tasks}
    return {
        '_key': keys,
        **{name: torch.cat(values or [empty[name]]).cpu().numpy() for name, values in found.items()},
    }


def tasks_of(model: nn.Module, tasks: Sequence[Task] | None) -> tuple[Task, ...]:
    """The given tasks, or else the model's own.

    Raises:
        ConfigError: neither is there, or a run was passed for its model.

    >>> tasks_of(nn.Linear(1, 1), None)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: Linear has no tasks.
    Wrap it: mmpipe.models.BareModel(module, inputs='photo', tasks=[...]), or build an mm.MultitaskModel.
    """
    if isinstance(model, Run | str | os.PathLike):
        raise ConfigError(f'{model!r} is no model: pass mm.load_model(run), the trained model of a run.')
    found = tuple(tasks if tasks is not None else getattr(model, 'tasks', ()))
    if not found or not all(isinstance(task, Task) for task in found):
        raise ConfigError(
            f'{type(model).__name__} has no tasks. Wrap it: '
            f"mmpipe.models.BareModel(module, inputs='photo', tasks=[...]), or build an mm.MultitaskModel."
        )
    return found


def mask_of(batch: Mapping[str, Any], task: Task) -> torch.Tensor:
    """bool `[B]`: which rows of the batch have the task's label.

    >>> from mmpipe.train.tasks import regression
    >>> mask_of({'price': torch.zeros(2)}, regression('price'))
    tensor([True, True])
    """
    masks = batch.get('_mask', {})
    if task.field in masks:
        return masks[task.field]
    return torch.ones(len(batch[task.field]), dtype=torch.bool, device=batch[task.field].device)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are; the CPU when it has none.

    >>> device_of(nn.Linear(1, 1))
    device(type='cpu')
    """
    devices = [parameter.device for parameter in model.parameters()]
    here = [device for device in devices if device.type != 'meta']  # else they are on another stage of a pipeline
    return next(iter(here or devices), torch.device('cpu'))


def target_stds(model: nn.Module) -> dict[str, torch.Tensor]:
    """{regression: standard deviation of its training targets} of a model that keeps them.

    >>> target_stds(nn.Linear(1, 1))
    {}
    """
    return model.target_std() if hasattr(model, 'target_std') else {}  # type: ignore[operator]


def fields_of(model: nn.Module, tasks: Sequence[Task]) -> list[str] | None:
    """The fields that a model and its tasks read; None when the model does not say.

    >>> fields_of(nn.Linear(1, 1), ()) is None
    True
    """
    inputs = getattr(model, 'inputs', None)
    return None if inputs is None else [*inputs, *(task.field for task in tasks)]


def outputs_of(
    model: nn.Module,
    loader: Any,
    tasks: Sequence[Task],
    precision: str,
    *,
    call: Callable[[Mapping[str, Any]], Mapping[str, torch.Tensor]] | None = None,
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]]:
    """Each batch that has rows, and what the model makes of it in eval mode.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> model = example_model()
    >>> found = outputs_of(model, DataLoader(example_rows(), batch_size=2, device='cpu'), model.tasks, 'fp32')
    >>> [(batch['_key'], output['kind'].shape) for batch, output in found]
    [(['a', 'b'], torch.Size([2, 2]))]
    """
    if isinstance(loader, DataLoader):
        loader = loader.fresh(fields=fields_of(model, tasks))
    training = model.training
    device = device_of(model)
    model.eval()
    try:
        # What `fully_shard` gathers in inference mode could not be trained with afterwards.
        with torch.no_grad() if is_sharded(model) else torch.inference_mode():
            for batch in loader:
                if len(batch['_key']) == 0 and not is_sharded(model):  # a rank without rows in the last step
                    continue
                with autocast(precision, device):
                    output = (call or model)(batch)
                yield batch, output
    finally:
        model.train(training)
