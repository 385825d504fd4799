"""New heads on the encoders of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpipe.errors import ConfigError, RunError
from mmpipe.models.heads import make_head
from mmpipe.models.lora import Lora, add_lora
from mmpipe.models.multitask import MultitaskModel, check_freeze, slot
from mmpipe.models.rebuild import build_recorded, load_multitask
from mmpipe.runs import Run, open_run

if TYPE_CHECKING:
    from mmpipe.train.tasks import Task


def transfer(
    run: str | os.PathLike[str] | Run,
    *,
    tasks: Sequence[Task],
    freeze: str | int | None = 'encoders',
    cached: bool = False,
    lora: Lora | None = None,
) -> TransferFactory:
    """A model factory: the encoders and the fusion of a run with their weights, and new heads for new tasks.

    Args:
        run: what was trained before.
        tasks: what to learn now. All of them get new heads, whatever they are called.
        freeze: 'encoders' trains fusion and heads, 'trunk' heads alone (a linear probe), a number also so many of the
            last layers of each encoder, None everything. What is frozen comes out of the training bit for bit as it
            went in, statistics of BatchNorm included.
        cached: train on features that `mm.embed(run, loader)` made, so that no encoder runs. The run that comes out
            takes inputs as any other does.
        lora: adapters beside layers of the encoders, which then learn although these stay as they are.

    Returns:
        A factory for `Trainer.fit`. Buffers that encoders fitted on the first run's rows are kept; the new heads fit
        theirs on the new rows. The run it makes can be rebuilt, also when `run` is gone.

    Raises:
        ConfigError: no tasks, another word for `freeze`, or `cached` with encoders that train.
        ModelError: no encoder has a layer for an adapter.
        RunError: the run cannot be rebuilt, has no checkpoint, or trained no `MultitaskModel`.

    >>> from mmpipe.train import regression
    >>> from mmpipe.train.example import example_run
    >>> factory = transfer(example_run(), tasks=[regression('weight')], freeze='trunk')
    >>> [name for name, parameter in factory().named_parameters() if parameter.requires_grad]
    ['heads.weight.linear.weight', 'heads.weight.linear.bias']
    """
    if not tasks:
        raise ConfigError("transfer needs at least one task, as in tasks=[mm.classification('season', 4)].")
    check_freeze(freeze)
    if cached and freeze not in ('encoders', 'trunk'):
        raise ConfigError(
            f'transfer(cached=True, freeze={freeze!r}): features are of encoders that stay as they are. Give '
            f"freeze='encoders' or 'trunk', or leave out cached=."
        )
    if lora is not None and (cached or freeze not in ('encoders', 'trunk')):
        raise ConfigError(
            f'transfer(lora=..., freeze={freeze!r}, cached={cached}): adapters are for encoders that stay as they are '
            f"and run. Give freeze='encoders' or 'trunk', and leave out cached=."
        )
    opened = open_run(run)
    if opened.record['factory'] is None:
        raise RunError(
            f'Run {opened.id} cannot be transferred from: {opened.cannot["rebuild"]}. Train it again with a factory at '
            f'the top level of a module.'
        )
    return TransferFactory(run=opened, tasks=tuple(tasks), freeze=freeze, cached=cached, lora=lora)


@dataclass(frozen=True, kw_only=True)
class TransferFactory:
    """What `transfer` returns: called without arguments, it makes the model.

    Attributes:
        run: what is transferred from.
        tasks: the new tasks.
        freeze: what stays as it is.
        cached: whether the model takes features.
        lora: adapters of the encoders.
    """

    run: Run
    tasks: tuple[Task, ...]
    freeze: str | int | None
    cached: bool = False
    lora: Lora | None = None

    def __call__(self) -> MultitaskModel:
        """The model with the run's weights and new heads."""
        model = _with_heads(load_multitask(self.run, why='transfer'), self.tasks, self.freeze, self.lora).train()
        model.cached = tuple(model.inputs) if self.cached else ()
        return model

    def factory_record(self) -> dict[str, Any]:
        """What a run record says of it: the whole chain down to a function, so that no other run is needed."""
        return {
            'kind': 'transfer',
            'run': self.run.id,
            'base': self.run.record['factory'],
            'tasks': [task.to_json() for task in self.tasks],
            'freeze': self.freeze,
            **({'cached': True} if self.cached else {}),
            **({} if self.lora is None else {'lora': self.lora.to_json()}),
        }


def build_transferred(record: Mapping[str, Any], *, run: str) -> nn.Module:
    """The structure that `factory_record` describes, without weights."""
    from mmpipe.train.tasks import task_from_json

    base = build_recorded(record['base'], run=run)
    assert isinstance(base, MultitaskModel)
    lora = None if record.get('lora') is None else Lora(**record['lora'])
    return _with_heads(base, tuple(task_from_json(task) for task in record['tasks']), record['freeze'], lora)


def _with_heads(
    model: MultitaskModel, tasks: tuple[Task, ...], freeze: str | int | None, lora: Lora | None
) -> MultitaskModel:
    width = int(model.fusion.out_features)  # type: ignore[arg-type]
    model.tasks = tasks
    model.heads = nn.ModuleDict({slot(task.name): make_head(task, width) for task in tasks})
    if lora is not None:
        add_lora(model, lora)
    model.freeze(freeze)
    return model
