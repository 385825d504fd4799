"""Classes that validation rows have and no training row has: nobody could learn them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from mmpipe.errors import LabelError
from mmpipe.runs import Run
from mmpipe.shards import Rows
from mmpipe.train.tasks import Classification, Multilabel, Task

SHOWN = 3  # classes and keys in a message


class UnseenClassWarning(UserWarning):
    """Validation rows have a label that no training row has."""


def check_classes(
    tasks: Sequence[Task], train: Rows, val: Rows, *, known: dict[str, int] | None = None, allow: bool = False
) -> dict[str, list[int]]:
    """Look for classes that only validation rows have.

    Of one class per row, such a class makes every one of its rows wrong, whatever is learned: that is an error, unless
    it is allowed. Of several labels per row, the others of such a row still count: that is told.

    Args:
        tasks: what is learned.
        train: rows to train on.
        val: rows to evaluate on.
        known: {task: how many of its first classes a model has learned before}, on other rows.
        allow: tell in any case, and refuse nothing.

    Returns:
        {task: classes that only validation rows have}; only where there are any.

    Raises:
        LabelError: a class per row that only validation rows have, and `allow` is false; names task, class and rows.

    Warns:
        UnseenClassWarning: as above.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.tasks import classification
    >>> rows, task = example_rows(), classification('kind', ['cat', 'dog'])
    >>> check_classes([task], rows, rows)
    {}
    >>> check_classes([task], rows.take([1]), rows.take([0]))
    Traceback (most recent call last):
    ...
    mmpipe.errors.LabelError: Task 'kind': no training row has class 'dog', which 1 validation row has ('a').
    Give the class training rows (mm.stratify splits every label over all splits), leave its rows out of the validation
    (rows.take), or pass allow_unseen=True to fit to count them as wrong.
    """
    unseen: dict[str, list[int]] = {}
    for task in tasks:
        if not isinstance(task, Classification | Multilabel):
            continue
        learned, asked = counts(task, train) > 0, counts(task, val)
        learned[: (known or {}).get(task.name, 0)] = True
        missing = np.flatnonzero((asked > 0) & ~learned)
        if not len(missing):
            continue
        names = ', '.join(repr(_name(task, each, val)) for each in missing[:SHOWN].tolist())
        more = f' and {len(missing) - SHOWN} more' if len(missing) > SHOWN else ''
        rows = int(asked[missing].sum())
        keys = ', '.join(repr(key) for key in _keys(task, val, missing))
        found = (
            f'Task {task.name!r}: no training row has class {names}{more}, which {rows} validation '
            f'{"row has" if rows == 1 else "rows have"} ({keys}{", ..." if rows > SHOWN else ""}).'
        )
        if isinstance(task, Classification) and not allow:
            raise LabelError(
                f'{found} Give the class training rows (mm.stratify splits every label over all splits), leave its '
                f'rows out of the validation (rows.take), or pass allow_unseen=True to fit to count them as wrong.'
            )
        warnings.warn(
            f'{found} Nothing is learned of it. mm.stratify splits every label over all splits.',
            UnseenClassWarning,
            stacklevel=4,
        )
        unseen[task.name] = missing.tolist()
    return unseen


def known_classes(run: Run | None) -> dict[str, int]:
    """{task: number of classes} that a run has learned; {} of None.

    >>> from mmpipe.train.example import example_run
    >>> known_classes(example_run())
    {'kind': 2}
    """
    found = {task['name']: task.get('classes') for task in run.tasks} if run is not None else {}
    return {
        name: classes if isinstance(classes, int) else len(classes)
        for name, classes in found.items()
        if isinstance(classes, int | list)
    }


def counts(task: Classification | Multilabel, rows: Rows) -> np.ndarray:
    """How many rows have each class.

    Args:
        task: whose field is read.
        rows: that `task.check` has passed.

    Returns:
        int64 `[classes]`.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.tasks import classification
    >>> counts(classification('kind', 3), example_rows())
    array([1, 1, 0])
    """
    found = np.zeros(task.outputs, dtype=np.int64)
    for start in range(0, len(rows), 4096):
        values, valid = rows.read(task.field, np.arange(start, min(start + 4096, len(rows))))
        if isinstance(task, Classification):
            found += np.bincount(values[valid].astype(np.int64), minlength=task.outputs)
        else:
            here = (values[valid] > 0).sum(0)[: task.outputs]  # a vocabulary can be longer; what is beyond is 0
            found[: len(here)] += here
    return found


def _keys(task: Task, rows: Rows, classes: np.ndarray) -> list[str]:
    """Keys of the first rows that have one of some classes."""
    found: list[str] = []
    for start in range(0, len(rows), 4096):
        positions = np.arange(start, min(start + 4096, len(rows)))
        values, valid = rows.read(task.field, positions)
        has = np.isin(values, classes) if values.ndim == 1 else (values[:, classes] > 0).any(1)
        found += rows.keys[positions[valid & has]].tolist()
        if len(found) >= SHOWN:
            break
    return found[:SHOWN]


def _name(task: Classification | Multilabel, number: int, rows: Rows) -> str | int:
    """What a class is called: by the task, else by the field, else its number."""
    if not isinstance(task.classes, int):
        return task.classes[number]
    words = rows.fields[task.field].vocabulary or ()
    return words[number] if number < len(words) else number
