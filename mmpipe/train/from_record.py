"""Going on with a run from its record alone: no script is started again.

Everything that decides what a step computes stands in the record: the factory, the tasks, the settings, how both
loaders read their rows, and which rows these are. What cannot be described stands in `run.cannot['resume']`; such a run
goes on where its script is started again with `resume=`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import RunError
from mmpipe.models.lora import Lora
from mmpipe.models.rebuild import build_recorded
from mmpipe.models.transfer import TransferFactory
from mmpipe.runs import ChangedSourceWarning, Run, find_factory, open_run
from mmpipe.runs.described import NotDescribed, described, rebuilt
from mmpipe.shards import Rows, open_snapshot
from mmpipe.train.tasks import task_from_json

MADE = ('optimizer', 'scheduler', 'balancing', 'callbacks')
"""Settings of the trainer that may be objects."""


def how_to_go_on(trainer: Any, loaders: Mapping[str, DataLoader | None]) -> dict[str, Any]:
    """What a run record says so that another process can go on with the run.

    Args:
        trainer: its configuration.
        loaders: 'train', and 'val' or None.

    Returns:
        {'inputs': {'train': ..., 'val': ...}, 'objects': {setting: ...}, 'reason': None}, or with a text as 'reason'
        where something cannot be described, and None in its place.
    """
    reasons: list[str] = []
    inputs: dict[str, Any] = {}
    for name, loader in loaders.items():
        try:
            inputs[name] = None if loader is None else loader.description()
            if loader is not None:
                _check_rows(loader.rows)
        except NotDescribed as why:
            inputs.setdefault(name, None)
            reasons.append(f'{name}: {why}')
    objects: dict[str, Any] = {}
    for name in MADE:
        try:
            value = getattr(trainer, name)
            objects[name] = described(list(value) if name == 'callbacks' else value)
        except NotDescribed as why:
            objects[name] = None
            reasons.append(f'{name}=: {why}')
    return {'inputs': inputs, 'objects': objects, 'reason': '; '.join(reasons) or None}


def resume_run(
    run: str | os.PathLike[str] | Run, *, progress: Any = None, runs: str | os.PathLike[str] | None = None
) -> Run:
    """Train on from the newest checkpoint of a run that was killed, interrupted or failed.

    With the same code, on the same kind of machine and in as many processes as before, what comes out is bit for bit
    what an uninterrupted run gives.

    Args:
        run: a run, its folder or its id.
        progress: as for `Trainer`.
        runs: where ids are looked up; the project's `.mmpipe/runs` when None.

    Returns:
        The run, finished.

    Raises:
        RunError: it has finished, another process trains it, it cannot go on from its record (the message says why),
            or its code or rows are no longer what they were.

    >>> from mmpipe.train.example import example_run
    >>> from mmpipe.errors import RunError
    >>> try:
    ...     resume_run(example_run())
    ... except RunError as error:
    ...     print(str(error).partition('.')[0])
    Run animals/0001 has finished: there is nothing to resume
    """
    from mmpipe.train.trainer import Trainer

    run = open_run(run, runs=runs)
    if run.status == 'finished':
        raise RunError(
            f'Run {run.id} has finished: there is nothing to resume. Train on from it with continue_from=, or with '
            f'more epochs by resume= in the script that made it.'
        )
    reason = run.cannot.get('resume') or run.cannot.get('rebuild')
    if reason is not None or 'inputs' not in run.record:
        raise RunError(
            f'Run {run.id} cannot go on from its record: {reason or "an older mmpipe made it"}. Start the script that '
            f'made it again, with resume={str(run.path)!r}.'
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always', ChangedSourceWarning)
        inputs, objects = run.record['inputs'], rebuilt(run.record['objects'], run=run.id)
        snapshot = open_snapshot(run.snapshot['root'], run.snapshot['id'])
        loaders = {
            name: DataLoader.described(inputs[name], _rows(snapshot, hashes), run=run.id)
            for name, hashes in (('train', run.train_rows()), ('val', run.val_rows()))
            if inputs[name] is not None
        }
        settings = {**run.record['trainer'], **objects}
        if settings['unfreeze'] is not None:
            settings['unfreeze'] = {int(epoch): layers for epoch, layers in settings['unfreeze'].items()}
        trainer = Trainer(**settings, runs=run.path.parents[1], progress=progress)
        factory = _Recorded(run)
        factory.find()
    changed = [str(each.message) for each in said if issubclass(each.category, ChangedSourceWarning)]
    if changed:
        raise RunError(
            f'Run {run.id} cannot go on as it began: {changed[0]} Put the source back, or start a new run from its '
            f'weights with continue_from={str(run.path)!r}.'
        )
    tasks = [task_from_json(task) for task in run.tasks]
    return trainer.fit(factory, loaders['train'], loaders.get('val'), tasks=tasks, resume=run)


class _Recorded:
    """The factory of a run, which describes itself as it was described then."""

    def __init__(self, run: Run) -> None:
        self.run, self.record = run, run.record['factory']

    def factory_record(self) -> dict[str, Any]:
        """As in the run."""
        return self.record

    def find(self) -> None:
        """Warns where the source has changed since."""
        if self.record['kind'] == 'function':
            find_factory(self.record, run=self.run.id)

    def __call__(self) -> nn.Module:
        if self.record['kind'] == 'function':
            return find_factory(self.record, run=self.run.id)(**self.record['args'])
        if self.record['kind'] == 'transfer' and self.run.newest_checkpoint() is None:  # with the weights of its parent
            assert self.run.parent is not None
            tasks = tuple(task_from_json(task) for task in self.record['tasks'])
            parent, cached = open_run(self.run.parent['path']), self.record.get('cached', False)
            lora = None if self.record.get('lora') is None else Lora(**self.record['lora'])
            freeze = self.record['freeze']
            return TransferFactory(run=parent, tasks=tasks, freeze=freeze, cached=cached, lora=lora)()
        model: Any = build_recorded(self.record, run=self.run.id).train()
        if self.record.get('cached'):
            model.cached = tuple(model.inputs)
        return model


def _check_rows(rows: Any) -> None:
    if not isinstance(rows, Rows):
        raise NotDescribed('rows of several snapshots cannot be told by one')
    if not (np.diff(rows.index) > 0).all():
        raise NotDescribed('the rows are in an order of their own, or come more than once')


def _rows(snapshot: Any, hashes: np.ndarray) -> Rows:
    rows = snapshot.rows()
    return rows.take(np.flatnonzero(np.isin(rows.hashes, hashes)))
