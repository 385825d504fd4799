"""Training on from a run, in one call: what the run's record says is the default, and every part of it can be another.

    finetune            the same tasks on other rows, gently: a tenth of the learning rate, less for earlier layers
    linear_probe        new linear heads on what the run has learned, everything else still
    continue_training   new rows since the run's snapshot, a share of the old ones, vocabularies that have grown

Each is `Trainer.fit` with `continue_from=` or `mm.transfer`, and returns its run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.data.sampling import since
from mmpipe.errors import ConfigError, RunError
from mmpipe.models.transfer import transfer
from mmpipe.runs import Run, find_factory, open_run
from mmpipe.runs.described import rebuilt
from mmpipe.shards import Rows, Snapshot, open_snapshot
from mmpipe.train.from_record import MADE
from mmpipe.train.tasks import Task
from mmpipe.train.trainer import Trainer

GENTLER = 0.1
"""Of the learning rate a run was trained with, for training on from its weights."""
LAYER_DECAY = 0.75
"""Of the learning rate from one layer to the one before it: 0.65 to 0.9 are usual (Clark et al. 2020, "ELECTRA";
Bao et al. 2022, "BEiT"); Howard and Ruder 2018 divided by 2.6."""


def finetune(
    run: str | os.PathLike[str] | Run,
    train: DataLoader,
    val: DataLoader | None = None,
    *,
    trainer: Trainer | None = None,
    **settings: Any,
) -> Run:
    """Train all of a run's model on, on other rows with the same fields.

    Args:
        run: whose weights to start from.
        train: rows to train on.
        val: rows to measure on.
        trainer: how; else as the run was trained, with a tenth of its learning rate, a tenth of the steps as warm-up,
            and `layer_decay=0.75`.
        settings: of `Trainer`, instead of these, such as `epochs=3`.

    Returns:
        The new run, whose parent is `run`.

    Raises:
        ConfigError: `trainer` and settings.
        RunError: the run's model cannot be rebuilt.

    >>> import tempfile
    >>> import mmpipe as mm
    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_run
    >>> loader = mm.DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> tuned = finetune(example_run(), loader, runs=tempfile.mkdtemp())
    >>> tuned.parent['run'], tuned.record['trainer']['layer_decay']
    ('animals/0001', 0.75)
    """
    opened = open_run(run)
    if trainer is None:
        gentle = _gentle(opened)
        steps = len(train) * settings.get('epochs', gentle.epochs) // settings.get('accumulate', gentle.accumulate)
        own_rate = gentle.optimizer is not None or settings.get('optimizer') is not None
        gentle = dataclasses.replace(
            gentle,
            layer_decay=LAYER_DECAY,
            warmup=0 if own_rate or gentle.scheduler is not None or 'scheduler' in settings else max(1, steps // 10),
        )
        trainer = dataclasses.replace(gentle, **settings)
    elif settings:
        raise _both(settings)
    factory, args = _factory(opened, {})
    return trainer.fit(factory, train, val, args=args, continue_from=opened, name=_name(opened))


def linear_probe(
    run: str | os.PathLike[str] | Run,
    train: DataLoader,
    val: DataLoader | None = None,
    *,
    tasks: Sequence[Task],
    trainer: Trainer | None = None,
    cached: bool = False,
    **settings: Any,
) -> Run:
    """Train linear heads for some tasks on what a run has learned, and nothing else.

    Args:
        run: whose encoders and fusion stay as they are, bit for bit.
        train: rows to train on.
        val: rows to measure on.
        tasks: what to learn.
        trainer: how; else 20 epochs of AdamW at 0.001, down to 0 by a cosine.
        cached: whether the loaders give features that `mm.embed` made.
        settings: of `Trainer`, instead of these.

    Returns:
        The new run.

    Raises:
        ConfigError: no tasks, or `trainer` and settings.
        RunError: the run's model cannot be rebuilt.

    >>> import tempfile
    >>> import mmpipe as mm
    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_run
    >>> loader = mm.DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> probed = linear_probe(example_run(), loader, tasks=[mm.regression('price')], epochs=1, runs=tempfile.mkdtemp())
    >>> probed.parent['kind'], probed.tasks[0]['name']
    ('transfer', 'price')
    """
    if trainer is None:
        trainer = Trainer(**{'epochs': 20, 'lr': 1e-3, 'schedule': 'cosine', **settings})
    elif settings:
        raise _both(settings)
    return trainer.fit(transfer(run, tasks=tasks, freeze='trunk', cached=cached), train, val)


def continue_training(
    run: str | os.PathLike[str] | Run,
    snapshot: Snapshot | str | os.PathLike[str] | None = None,
    *,
    replay: float = 0.2,
    args: Mapping[str, Any] | None = None,
    trainer: Trainer | None = None,
    **settings: Any,
) -> Run:
    """Train a run on, on what is new or has changed since its snapshot, and on a share of the rest against forgetting.

    The rows are those of the splits that it was trained and measured on, read as its record says. Classes that were
    appended to a vocabulary get new rows in the last layer of their head.

    Args:
        run: to go on from.
        snapshot: a later one of the same root; its newest when None.
        replay: share of old rows in each epoch, from 0 to below 1.
        args: of the model's factory that are to be others. A vocabulary among them is replaced by the grown one by
            itself.
        trainer: how; else as the run was trained, with a tenth of its learning rate.
        settings: of `Trainer`, instead of these, such as `epochs=3`.

    Returns:
        The new run, whose parent is `run`.

    Raises:
        ConfigError: a share that is not possible, or `trainer` and settings.
        DataError: no row is new.
        RunError: the run's model or loaders cannot be made from its record.

    >>> import mmpipe as mm
    >>> from mmpipe.train.example import example_run
    >>> try:
    ...     continue_training(example_run())
    ... except mm.MmpipeError as error:
    ...     print(str(error)[:39])
    None of the 2 rows is new or changed si
    """
    opened = open_run(run)
    reason = opened.cannot.get('rebuild') or opened.cannot.get('resume')
    if reason is not None or 'inputs' not in opened.record:
        raise RunError(
            f'Run {opened.id} cannot be continued from its record: {reason or "an older mmpipe made it"}. Make the '
            f'loaders yourself, with mm.sampling.since, and call Trainer.fit(..., continue_from=run).'
        )
    before = open_snapshot(opened.snapshot['root'], opened.snapshot['id'])
    now = snapshot if isinstance(snapshot, Snapshot) else open_snapshot(os.fspath(snapshot or opened.snapshot['root']))
    inputs = opened.record['inputs']
    rows = {'train': _same_part(before, now, opened.train_rows()), 'val': _same_part(before, now, opened.val_rows())}
    train = DataLoader.described(
        inputs['train'],
        since(rows['train'], before=before, replay=replay),
        run=opened.id,
        sampler=None,
    )
    val = DataLoader.described(inputs['val'], rows['val'], run=opened.id) if inputs.get('val') is not None else None
    if trainer is None:
        trainer = dataclasses.replace(_gentle(opened), **settings)
    elif settings:
        raise _both(settings)
    factory, made = _factory(opened, _grown(opened, before, now))
    return trainer.fit(
        factory, train, val, args={**(made or {}), **(args or {})} or None, continue_from=opened, name=_name(opened)
    )


def _name(run: Run) -> str:
    return run.id.rpartition('/')[0]


def _gentle(run: Run) -> Trainer:
    """As a run was trained, with smaller steps, and its checkpoints where the run's are."""
    settings = dict(run.record['trainer'])
    objects = rebuilt(run.record['objects'], run=run.id) if 'objects' in run.record else {}
    for name in MADE:
        settings[name] = objects.get(name) if objects.get(name) is not None else {'balancing': 'fixed'}.get(name)
    settings['callbacks'] = tuple(settings['callbacks'] or ())
    settings |= {'lr': settings['lr'] * GENTLER, 'unfreeze': None, 'max_steps': None}
    return Trainer(**settings, runs=run.path.parents[1])


def _factory(run: Run, grown: Mapping[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any] | None]:
    """What makes a run's model, and its arguments."""
    record = run.record['factory']
    if record is None:
        raise RunError(f'Run {run.id} cannot be trained on from its record: {run.cannot["rebuild"]}.')
    if record['kind'] != 'function':
        raise RunError(
            f'Run {run.id} was made by mm.transfer: transfer from it again, with mm.transfer(run, tasks=..., '
            f'freeze=None) for all of its weights.'
        )
    return find_factory(record, run=run.id), {**record['args'], **grown}


def _grown(run: Run, before: Snapshot, now: Snapshot) -> dict[str, Any]:
    """Arguments of the factory that are vocabularies which have grown since."""
    found: dict[str, Any] = {}
    for name, field in before.fields.items():
        words = list(field.vocabulary or ())
        later = now.fields.get(name)
        if not words or later is None or len(later.vocabulary or ()) <= len(words):
            continue
        for argument, value in run.record['factory'].get('args', {}).items():
            if value == words and name in (argument, *(task['field'] for task in run.tasks)):
                found[argument] = list(later.vocabulary or ())
    return found


def _same_part(before: Snapshot, now: Snapshot, hashes: np.ndarray) -> Rows:
    """Rows of the splits that some rows of an earlier snapshot were of."""
    rows = before.rows()
    splits = sorted(set(rows.take(np.flatnonzero(np.isin(rows.hashes, hashes))).system('_split').tolist()))
    return now.rows().take(np.flatnonzero(np.isin(now.rows().system('_split').astype(str), splits)))


def _both(settings: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        f'trainer= and {next(iter(settings))}=: give a whole Trainer, or single settings, which change the default.'
    )
