"""All runs at a glance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import RunError
from mmpipe.home import runs_dir
from mmpipe.runs.record import Run, list_runs, open_run
from mmpipe.wording import table_of


@dataclass(frozen=True)
class RunTable:
    """Runs, oldest first. Printed, it is a table; `to_json` gives it as data.

    Attributes:
        runs: the runs.
    """

    runs: tuple[Run, ...]

    def __len__(self) -> int:
        return len(self.runs)

    def to_json(self) -> list[dict[str, Any]]:
        """Per run: id, status, created, snapshot, step, parent, metrics, and the commit of its code."""
        return [
            {
                'run': run.id,
                'status': run.status,
                'created': run.record.get('created'),
                'snapshot': run.record.get('snapshot', {}).get('id'),
                'step': run.record.get('step'),
                'parent': (run.record.get('parent') or {}).get('run'),
                'metrics': run.record.get('metrics') or {},
                'commit': (run.record.get('git') or {}).get('commit'),
            }
            for run in self.runs
        ]

    def __str__(self) -> str:
        if not self.runs:
            return 'no runs'
        lines = []
        for row in self.to_json():
            shown = [
                f'{task} {name} {value:.4g}'
                for task, scores in row['metrics'].items()
                for name, value in _first(measured(scores))
            ]
            created = (row['created'] or '')[:16].replace('T', ' ')
            lines.append([row['run'], row['status'], created, row['snapshot'] or '', ', '.join(shown)])
        return table_of(['run', 'status', 'created (UTC)', 'snapshot', 'metrics'], lines)


def measured(scores: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what an evaluation gives for a task: numbers, but for how many rows there were.

    >>> measured({'n': 3, 'accuracy': 0.5, 'mae': None})
    {'accuracy': 0.5}
    """
    return {name: value for name, value in scores.items() if name != 'n' and isinstance(value, float)}


def _first(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """One metric of a task: the first that is not its loss, where there is one."""
    return sorted(scores.items(), key=lambda score: score[0] == 'loss')[:1]


def table(name: str | None = None, *, runs: str | os.PathLike[str] | None = None) -> RunTable:
    """The runs of a name, or all.

    Args:
        name: first part of the runs' ids, such as 'shop'.
        runs: their folder; the project's `.mmpipe/runs` when None.

    Raises:
        RunError: there is no run of that name.

    >>> len(table(runs='/nowhere'))
    0
    """
    root = Path(runs) if runs is not None else runs_dir()
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    names: Sequence[str] = folders if name is None else [name]
    found = [open_run(path) for each in names for path in list_runs(each, runs=root)]
    if name is not None and not found:
        known = ', '.join(each for each in folders if list_runs(each, runs=root)) or 'none'
        raise RunError(f'There is no run called {name!r} in {root}; there are: {known}.')
    return RunTable(tuple(sorted(found, key=lambda run: (run.record.get('created') or '', run.id))))
