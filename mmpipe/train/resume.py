"""Whether a run can be resumed: everything that decides what a step computes must be as it was."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from mmpipe.errors import RunError
from mmpipe.runs import Run, list_runs, open_run
from mmpipe.runs.lock import is_training

_log = logging.getLogger(__name__)

FREE = (
    'checkpoint_every', 'checkpoint_seconds', 'keep_checkpoints', 'keep_best', 'keep_every', 'evaluate_every',
    'log_every', 'sharded_checkpoints',
)  # fmt: skip
"""Settings that change no step."""
LENGTH = ('epochs', 'max_steps')
"""Settings that change no step unless the learning rate depends on the length of the run."""


def check_resumed(run: Run, now: Mapping[str, Any], *, parent: Run | None) -> None:
    """Compare a run's record with what is about to be trained.

    Args:
        run: to be resumed.
        now: what its record would say if it were started now.
        parent: run that it is to continue or transfer from, or None where the call does not say.

    Raises:
        RunError: something differs; the message says what.
    """
    then = _comparable(run.record)
    for key, value in _comparable(now).items():
        if then.get(key) != value:
            raise RunError(
                f'Run {run.id} cannot be resumed with {key} = {value!r}: it was started with {then.get(key)!r}. '
                f'Give it what it had, or start a new run with continue_from={str(run.path)!r}.'
            )
    if parent is not None and (run.parent is None or run.parent['path'] != str(parent.path)):
        raise RunError(
            f'Run {run.id} did not start from run {parent.id}, so it cannot be resumed as if it had. Finish it with '
            f'resume={str(run.path)!r} alone, or pass another name=.'
        )


def unfinished_run(
    name: str, now: Mapping[str, Any], *, parent: Run | None, runs: str | os.PathLike[str] | None
) -> Run | None:
    """The newest run of a name, settings and a parent that ended before its time.

    Where there is only one that has finished, that is logged: what follows is the same training once more.

    Args:
        name: of the runs.
        now: as for `check_resumed`.
        parent: run that it is to continue or transfer from.
        runs: folder of the runs; the project's when None.

    >>> unfinished_run('nothing', {}, parent=None, runs='/tmp') is None
    True
    """
    finished = None
    for run in map(open_run, reversed(list_runs(name, runs=runs))):
        came_from = None if run.parent is None else run.parent['path']
        if came_from != (None if parent is None else str(parent.path)):
            continue
        try:
            check_resumed(run, now, parent=parent)
        except RunError:
            continue  # of other settings: a new attempt, not this one
        if run.status == 'finished':
            finished = finished or run
        elif not is_training(run):
            return run
    if finished is not None:
        _log.warning('run %s finished on this snapshot already; training another', finished.id)
    return None


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    settings = record['trainer']
    free = FREE if settings['schedule'] == 'cosine' else FREE + LENGTH
    return {
        'factory': _without_places(record['factory']),
        'tasks': record['tasks'],
        'snapshot': record['snapshot']['id'],
        **{f'rows {key}': value for key, value in record['rows'].items()},
        **record['loader'],
        **{key: value for key, value in settings.items() if key not in free},
    }


def _without_places(factory: Any) -> Any:
    """A checkout can move; what it computes is in the fingerprint."""
    if not isinstance(factory, Mapping):
        return factory
    return {key: _without_places(value) for key, value in factory.items() if key != 'file'}
