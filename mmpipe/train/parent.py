"""What a run has from the one that it goes on from: weights, heads that grow, and what its record says of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.models.multitask import MultitaskModel, slot
from mmpipe.models.rebuild import run_weights
from mmpipe.models.transfer import TransferFactory
from mmpipe.models.weights_file import put_weights
from mmpipe.runs import Run, open_run
from mmpipe.shards import Rows
from mmpipe.train.tasks import Task


def parent_of(factory: Any, continue_from: str | os.PathLike[str] | Run | None) -> Run | None:
    """The run whose weights a training begins with; None where it begins anew.

    Args:
        factory: as for `Trainer.fit`.
        continue_from: as for `Trainer.fit`.

    Raises:
        ConfigError: both name one.
        RunError: there is no such run.

    >>> parent_of(nn.Linear, None)
    """
    if isinstance(factory, TransferFactory):
        if continue_from is not None:
            raise ConfigError('mm.transfer brings the weights of its run; leave out continue_from=.')
        return factory.run
    return open_run(continue_from) if continue_from is not None else None


def lineage_of(
    parent: Run | None, factory: dict[str, Any] | None, rows: Rows, tasks: tuple[Task, ...]
) -> dict[str, Any] | None:
    """What a run record says of the run it comes from, and of the rows that are new or gone since.

    Args:
        parent: the run it comes from, if any.
        factory: as recorded.
        rows: of the training now.
        tasks: of the model now.

    >>> from mmpipe.data.collate import example_rows
    >>> lineage_of(None, None, example_rows(), ())
    """
    if parent is None:
        return None
    old, now = parent.train_rows(), rows.hashes
    known = {task['name'] for task in parent.tasks}
    kind = 'transfer' if factory is not None and factory['kind'] == 'transfer' else 'continue'
    return {
        'run': parent.id,
        'path': str(parent.path),
        'kind': kind,
        'snapshot': parent.snapshot,
        'new_rows': int((~parent.trained_on(now)).sum()),
        'gone_rows': int((~np.isin(old, now)).sum()),
        'new_tasks': [task.name for task in tasks if kind == 'transfer' or task.name not in known],
    }


def carry_weights(model: nn.Module, parent: Run, new_tasks: list[str]) -> None:
    """Put a run's weights into a model that may have more tasks, or fewer.

    Args:
        model: built now.
        parent: whose weights.
        new_tasks: names of tasks that it did not have; their heads stay as they are.

    Raises:
        ModelError: anything else does not fit.
    """
    tensors = run_weights(parent)
    if isinstance(model, MultitaskModel):
        kept = {slot(task.name) for task in model.tasks}
        # A task that is no longer wanted leaves its head behind; everything else of the run must have its place.
        tensors = {n: t for n, t in tensors.items() if not n.startswith('heads.') or n.split('.')[1] in kept}
        tensors = _grown_heads(model, parent, tensors)
    put_weights(model, tensors, source=f'run {parent.id}', new=tuple(f'heads.{slot(name)}.' for name in new_tasks))


def _grown_heads(model: MultitaskModel, parent: Run, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fit the last layers of a parent to tasks with more classes than then: old classes keep their weights.

    Vocabularies only grow at their end, so class 3 then is class 3 now; the classes after it start from the model's
    own initial values.
    """
    before = {task['name']: task.get('classes') for task in parent.tasks}
    own = model.state_dict()
    for task in model.tasks:
        old, new = before.get(task.name), task.to_json().get('classes')
        grown = isinstance(old, list) and isinstance(new, list) and len(new) > len(old) and new[: len(old)] == old
        if grown or (isinstance(old, int) and isinstance(new, int) and new > old):
            for name in (f'heads.{slot(task.name)}.linear.{part}' for part in ('weight', 'bias')):
                tensors[name] = torch.cat([tensors[name], own[name][len(tensors[name]) :].cpu()])
    return tensors
