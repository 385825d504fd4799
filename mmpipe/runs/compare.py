"""What differs between runs: settings, rows, code, packages, and what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpipe.errors import ConfigError
from mmpipe.runs.record import Run, open_run
from mmpipe.runs.table import measured
from mmpipe.wording import table_of

ABSENT = '-'


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. Printed, it shows what differs; `to_json` gives all of it as data.

    Attributes:
        runs: the runs, in the order given.
        settings: {setting: value per run} of those that differ, such as 'trainer.lr' or 'loader.batch_size'.
        code: the same of commit, factory, its arguments and fingerprint, and packages.
        rows: per run {'train', 'new', 'gone'}: training rows, and how many of them the first run did not have, and
            had besides; None where a run has stored none.
        metrics: {'task.metric': value per run}.
    """

    runs: tuple[Run, ...]
    settings: Mapping[str, list[Any]]
    code: Mapping[str, list[Any]]
    rows: list[dict[str, int] | None]
    metrics: Mapping[str, list[float | None]]

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the runs by id."""
        return {
            'runs': [run.id for run in self.runs],
            'settings': dict(self.settings),
            'code': dict(self.code),
            'rows': self.rows,
            'metrics': dict(self.metrics),
        }

    def __str__(self) -> str:
        lines: list[list[str]] = []
        for part in (self.settings, self.code):
            lines += [[name, *(_short(value) for value in values)] for name, values in part.items()]
        for what, text in (('train', 'training rows'), ('new', '  not in the first'), ('gone', '  only in the first')):
            lines.append([text, *(ABSENT if rows is None else f'{rows[what]:,}' for rows in self.rows)])
        for name, values in self.metrics.items():
            lines.append([name, *(ABSENT if value is None else f'{value:.4g}' for value in values)])
        return table_of(['', *(run.id for run in self.runs)], lines)


def compare(*chosen: str | os.PathLike[str] | Run, runs: str | os.PathLike[str] | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        chosen: two runs or more: runs, their folders or ids.
        runs: where ids are looked up; the project's `.mmpipe/runs` when None.

    Raises:
        ConfigError: fewer than two.
        RunError: no such run.

    >>> from mmpipe.train.example import example_run
    >>> compare(example_run(), example_run()).settings
    {}
    """
    if len(chosen) < 2:
        raise ConfigError('compare takes two runs or more, as in mm.runs.compare("shop/0001", "shop/0002").')
    opened = tuple(open_run(each, runs=runs) for each in chosen)
    return Comparison(
        runs=opened,
        settings=_differing([_settings(run.record) for run in opened]),
        code=_differing([_code(run.record) for run in opened]),
        rows=_rows(opened),
        metrics=_metrics(opened),
    )


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {f'trainer.{name}': value for name, value in (record.get('trainer') or {}).items()}
    found |= {f'loader.{name}': value for name, value in (record.get('loader') or {}).items()}
    for split, inputs in (record.get('inputs') or {}).items():
        for name in ('decode', 'host_transforms', 'transforms'):
            found |= {
                f'{split}.{name}.{field}': _plain(each) for field, each in ((inputs or {}).get(name) or {}).items()
            }
    found |= {f'task.{task["name"]}': _without(task, 'name') for task in record.get('tasks') or []}
    return {**found, 'snapshot': (record.get('snapshot') or {}).get('id'), 'parent': _parent(record)}


def _parent(record: Mapping[str, Any]) -> str | None:
    parent = record.get('parent')
    return None if parent is None else f'{parent["kind"]} {parent["run"]}'


def _code(record: Mapping[str, Any]) -> dict[str, Any]:
    git, factory = record.get('git') or {}, record.get('factory') or {}
    found = {'commit': git.get('commit'), 'uncommitted changes': git.get('dirty')}
    found |= {f'model.{name}': value for name, value in factory.items() if name not in ('file', 'args')}
    found |= {f'model.args.{name}': value for name, value in (factory.get('args') or {}).items()}
    found |= {f'package.{name}': version for name, version in (record.get('versions') or {}).items()}
    return {**found, 'device': (record.get('machine') or {}).get('device')}


def _plain(value: Any) -> Any:
    """A described object without its tags: its class, and its arguments."""
    if isinstance(value, Mapping):
        if value.get('!') == 'named':
            return value['qualname']
        return {key: _plain(each) for key, each in value.items() if key != '!'}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _without(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key != name}


def _differing(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for each in found for name in each)
    sides = {name: [each.get(name) for each in found] for name in names}
    return {name: values for name, values in sides.items() if any(value != values[0] for value in values)}


def _rows(runs: tuple[Run, ...]) -> list[dict[str, int] | None]:
    hashes = [run.train_rows() if (run.path / 'train_rows.npy').is_file() else None for run in runs]
    first = hashes[0]
    found: list[dict[str, int] | None] = []
    for each in hashes:
        if each is None:
            found.append(None)
            continue
        new = 0 if first is None else int((~np.isin(each, first)).sum())
        gone = 0 if first is None else int((~np.isin(first, each)).sum())
        found.append({'train': len(each), 'new': new, 'gone': gone})
    return found


def _metrics(runs: tuple[Run, ...]) -> dict[str, list[float | None]]:
    flat = [
        {f'{task}.{name}': value for task, scores in (run.record.get('metrics') or {}).items()
         for name, value in measured(scores).items()}
        for run in runs
    ]  # fmt: skip
    return {name: [each.get(name) for each in flat] for name in dict.fromkeys(name for each in flat for name in each)}


def _short(value: Any, most: int = 40) -> str:
    text = ABSENT if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + '…'
