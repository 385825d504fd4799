"""mm.report: how well a model does on some rows, how sure that is, where it fails, and on which rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.evaluation.bootstrap import estimates, generator, intervals, numbered
from mmpipe.evaluation.calibration import calibration
from mmpipe.evaluation.curves import curves_of
from mmpipe.evaluation.mistakes import mistakes, worst_rows
from mmpipe.evaluation.models import model_of
from mmpipe.evaluation.outputs import Labelled, Outputs, check_names, collect, words_of
from mmpipe.evaluation.results import Report, TaskReport
from mmpipe.evaluation.slices import By, columns_of, compared, parts_of, slices_of
from mmpipe.evaluation.thumbnails import thumbnails_of
from mmpipe.evaluation.weighted import weighted
from mmpipe.runs import Run, open_run
from mmpipe.train.evaluate import tasks_of
from mmpipe.train.own_metrics import OwnMetrics, check_own, measure_own
from mmpipe.train.tasks import Classification, Multilabel, Task
from mmpipe.wording import how_many


def report(
    run: Run | str | os.PathLike[str] | nn.Module,
    loader: DataLoader | Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[Task] | None = None,
    by: By | Sequence[By] | Mapping[str, By] = (),
    group: str | Sequence[Any] | None = None,
    bootstrap: int = 1000,
    worst: int = 20,
    seed: int = 0,
    metrics: OwnMetrics | None = None,
    temperature: Mapping[str, float] | None = None,
    images: str | None = None,
    precision: str = 'fp32',
) -> Report:
    """How well a model does on some rows: metrics with intervals, calibration, parts, mistakes, and the worst rows.

    The same for any batch size, order and number of ranks, up to rounding; every rank returns all of it.

    Args:
        run: a run, its folder or id, or a model.
        loader: batches of the rows; an `mm.DataLoader` is read from its start without moving it.
        tasks: what to look at; the model's own when None.
        by: what to part the rows by: names of fields (label, labels, string, scalar; also those that neither model nor
            loader reads), 'split', functions of `loader.rows` that give a value per row, or {name: one of these, or
            values}; see `mmpipe.evaluation.slices` for which parts are told to differ.
        group: field, or values, that say which rows belong together, such as those of one patient: intervals and
            comparisons then draw whole groups. A row without a value is one by itself.
        bootstrap: resamples per interval (see `mmpipe.evaluation.bootstrap`); 0 for no intervals.
        worst: how many rows of each task to name.
        seed: of the resamples.
        metrics: {task: {name: metric}} of your own, as in `mm.evaluate`; computed anew for every resample.
        temperature: {task: temperature}, from `mm.calibrate` on other rows.
        images: a field with images, encoded or as tensors, to keep small ones of for the sheet of the worst rows.
        precision: 'fp32' or 'bf16' (autocast).

    Returns:
        The report: prints as a table, `to_json()`, `save(folder)`.

    Raises:
        ConfigError: the model has no tasks, or an argument that cannot work.
        DataError, LabelError: fields or labels that do not fit.
        ModelError: an output is not finite; names rows.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.models import BareModel
    >>> from mmpipe.train.tasks import regression
    >>> model = BareModel(nn.Flatten(0), inputs='price', tasks=[regression('price')])  # says what it is asked
    >>> print(report(model, DataLoader(example_rows(), batch_size=2, device='cpu'), by='kind'))
    report of model on 2 rows of split 'train', snapshot f2da95808d9835bc
      [95 % intervals] by 1,000 resamples of rows
    <BLANKLINE>
    price: regression, 1 labelled row
      loss                     0
      mae                      0
      rmse                     0
      r2                       -
      residuals                5/25/50/75/95 %: 0, 0, 0, 0, 0; mean 0
      worst rows               a  loss 0  1.5 -> 1.5
    <BLANKLINE>
    by kind
      task         part                         n  metric    value                      vs whole
      price        dog                          1  mae       0                                +0 few
      few: less than 10 rows, not compared
    """
    if bootstrap < 0 or worst < 0:
        raise ConfigError(f'report(bootstrap={bootstrap}, worst={worst}): not below 0.')
    model = model_of(run, loader)
    wanted = tasks_of(model, tasks)
    check_own(metrics, wanted)
    check_names('temperature', temperature or {}, wanted)
    known = isinstance(loader, DataLoader)
    for task in wanted if known else ():
        task.check(loader.rows, what='evaluation')  # type: ignore[union-attr]
    if known:  # before the model is run
        columns, groups = _about(loader, len(loader.rows), by, group)  # type: ignore[union-attr]
    outputs = collect(model, loader, wanted, precision=precision, temperature=temperature)
    if not known:
        columns, groups = _about(loader, len(outputs.keys), by, group)
    found = {name: each for name, each in outputs.tasks.items() if len(each)}
    parts = {name: parts_of(values) for name, values in columns.items()}
    slices = [
        each
        for name, named in parts.items()
        for task in found
        for each in slices_of(found[task], name, named, groups, times=bootstrap, seed=seed)
    ]
    described = tuple(
        _task(outputs.tasks[task.name], outputs, words_of(task, loader), (metrics or {}).get(task.name, {}), groups,
              bootstrap=bootstrap, worst=worst, seed=seed)
        for task in wanted
    )  # fmt: skip
    recorded = None if isinstance(run, nn.Module) else open_run(run)
    trained_on = int(recorded.trained_on(loader.rows.hashes).sum()) if recorded and known else None  # type: ignore[union-attr]
    keys = list(dict.fromkeys(row.key for task in described for row in task.worst))
    return Report(
        run=recorded.id if recorded else None,
        snapshot=loader.rows.snapshot.id if known else None,  # type: ignore[union-attr]
        split=_split_of(loader),
        rows=len(outputs.keys),
        trained_on=trained_on,
        tasks=described,
        slices=compared(slices, found, groups, seed=seed),
        bootstrap=bootstrap,
        group=None if group is None else group if isinstance(group, str) else 'given values',
        seed=seed,
        temperature=dict(temperature or {}),
        curves=curves_of(recorded) if recorded else {},
        notes=_notes(loader, outputs, wanted, trained_on),
        thumbnails={} if images is None else thumbnails_of(loader, images, keys),
    )


def _about(loader: Any, rows: int, by: Any, group: Any) -> tuple[dict[str, list[Any]], np.ndarray]:
    """(what to part the rows by, the group of each row)."""
    columns = columns_of(by, loader, rows)
    if group is None:
        return columns, np.arange(rows)
    name, what = (group, group) if isinstance(group, str) else ('group', group)
    values = columns_of({name: what}, loader, rows)[name]
    own = [(i,) if value is None else value for i, value in enumerate(values)]  # no value is equal to a tuple
    return columns, numbered(_objects(own))


def _objects(values: Sequence[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return out


def _task(
    found: Labelled, outputs: Outputs, words: Sequence[str], own: Mapping[str, Any], groups: np.ndarray, *,
    bootstrap: int, worst: int, seed: int,
) -> TaskReport:  # fmt: skip
    task = found.task
    kind = task.kind or type(task).__name__
    values = {'loss': float(found.loss.mean(dtype=np.float64)) if len(found) else None}
    values |= task.metrics(found.output, found.target) | measure_own(own, task, found.output, found.target)
    if len(found) == 0:
        return TaskReport(name=task.name, kind=kind, n=0, metrics=estimates(dict(values), {}))
    mine = numbered(groups[found.rows])
    between = intervals(weighted(found, dict(own)), mine, times=bootstrap, draw=generator(seed, task.name))
    return TaskReport(
        name=task.name,
        kind=kind,
        n=len(found),
        metrics=estimates(dict(values), between),
        calibration=calibration(found) if isinstance(task, Classification | Multilabel) else None,
        mistakes=mistakes(found, words),
        worst=worst_rows(found, outputs.keys, words, worst),
    )


def _split_of(loader: Any) -> str | None:
    if not isinstance(loader, DataLoader):
        return None
    found = set(loader.rows.system('_split').tolist())
    return found.pop() if len(found) == 1 else None


def _notes(loader: Any, outputs: Outputs, tasks: Sequence[Task], trained_on: int | None) -> tuple[str, ...]:
    notes = []
    if trained_on:
        notes.append(f'the run was trained on {trained_on:,} of these rows, so it looks better than it is')
    if isinstance(loader, DataLoader) and loader.dropped:
        notes.append(f'drop_last leaves out {how_many(loader.dropped, "row")}')
    empty = [task.name for task in tasks if len(outputs.tasks[task.name]) == 0]
    if empty:
        notes.append(f'no row has a label for {", ".join(empty)}')
    for task in tasks:
        found = outputs.tasks[task.name]
        if isinstance(task, Classification) and len(found) and len(np.unique(found.target)) == 1:
            notes.append(f'all labelled rows of {task.name} are of one class: its metrics say nothing of the others')
    return tuple(notes)
