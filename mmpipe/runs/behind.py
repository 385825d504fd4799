"""What lies behind a model, and which models a row lies behind. Reads run records only: no torch, no Pixeltable.

lineage('shop/0007')         rows, snapshot and versions, code, weights, and the same of the runs it started from
lineage(row='sku-0012')      the runs whose weights that row had a part in, and those it had none in
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from mmpipe.errors import ConfigError, RunError
from mmpipe.runs.record import Run, open_run
from mmpipe.runs.table import table
from mmpipe.wording import how_many, table_of

TRAINED, INHERITED, MEASURED, NO, UNKNOWN = 'trained', 'inherited', 'measured', 'no', 'unknown'


@dataclass(frozen=True)
class RunLineage:
    """A run and the runs it started from, it first. Printed, it is a paragraph per run; `to_json` gives it as data.

    Attributes:
        runs: the run, its parent, the parent of that, and so on.
        lost: id of a parent whose folder is gone or moved, so that what lies behind it is not known; '' where all
            are there.
    """

    runs: tuple[Run, ...]
    lost: str = ''

    def rows(self) -> np.ndarray:
        """Sorted uint64 key hashes of all rows that the weights come from: those of the run and of its parents.

        Raises:
            RunError: one of the runs has not stored its rows.
        """
        return np.unique(np.concatenate([_train_rows(run) for run in self.runs]))

    def to_json(self) -> dict[str, Any]:
        """'run', 'rows' (over all runs), 'lost', and per run 'behind': its rows, snapshot, code and weights."""
        return {
            'run': self.runs[0].id,
            'rows': len(self.rows()),
            'lost': self.lost or None,
            'behind': [_behind(run) for run in self.runs],
        }

    def __str__(self) -> str:
        rows, runs = how_many(len(self.rows()), 'row'), how_many(len(self.runs), 'run')
        lines = [f'{self.runs[0].id} comes from {rows} in {runs}']
        for each in map(_behind, self.runs):
            lines.append(f'{each["run"]} ({each["how"]}), {each["created"]}')
            lines.append(f'  rows      {each["train_rows"]:,} trained on, {each["val_rows"]:,} measured on')
            lines += [f'  snapshot  {name}' for name in _snapshot_lines(each['snapshot'])]
            code, weights = each['code'], each['weights']
            said = [code['factory'] or 'a built module', (code['fingerprint'] or '')[:16]]
            if code['commit']:
                said.append(f'commit {code["commit"][:10]}{" with changes" if code["dirty"] else ""}')
            lines.append(f'  code      {", ".join(word for word in said if word)}')
            digest = f'sha256 {weights["sha256"][:16]} of step {weights["step"]}' if weights else 'none'
            lines.append(f'  weights   {digest}')
        if self.lost:
            lines.append(f'{self.lost} is not there any more: the rows behind it are not known')
        return '\n'.join(lines)


@dataclass(frozen=True)
class RowLineage:
    """A row and what each run had of it. Printed, it is a table; `to_json` gives it as data.

    Attributes:
        key: of the row.
        seen: {run id: 'trained' on it; 'inherited', where a run that it started from was; 'measured', where only its
            metrics are of it; 'no'; or 'unknown', where rows behind the run are not stored}, oldest run first.
        through: {run id: run it inherited the row from}.
    """

    key: str
    seen: Mapping[str, str]
    through: Mapping[str, str]

    @property
    def runs(self) -> list[str]:
        """Ids of the runs whose weights the row has a part in."""
        return [run for run, how in self.seen.items() if how in (TRAINED, INHERITED)]

    def to_json(self) -> dict[str, Any]:
        """'row', 'runs' (whose weights it has a part in), 'seen' and 'through'."""
        return {'row': self.key, 'runs': self.runs, 'seen': dict(self.seen), 'through': dict(self.through)}

    def __str__(self) -> str:
        if not self.seen:
            return f'row {self.key}: no runs'
        lines = [
            [run, f'{how} from {self.through[run]}' if run in self.through else how] for run, how in self.seen.items()
        ]
        has = f'has a part in {how_many(len(self.runs), "run")} of {len(self.seen)}'
        return f'row {self.key} {has}\n{table_of(["run", "row"], lines)}'


@overload
def lineage(run: str | os.PathLike[str] | Run, *, runs: str | os.PathLike[str] | None = None) -> RunLineage: ...


@overload
def lineage(*, row: str, runs: str | os.PathLike[str] | None = None) -> RowLineage: ...


def lineage(
    run: str | os.PathLike[str] | Run | None = None,
    *,
    row: str | None = None,
    runs: str | os.PathLike[str] | None = None,
) -> RunLineage | RowLineage:
    """What lies behind a run; or the runs that a row lies behind.

    A run that continued or was transferred from another has the rows of that one behind it, too, even where its own
    snapshot does not hold them any more.

    Args:
        run: a run, its folder or its id.
        row: key of a row instead; of a mixture, behind the name of its source: 'web/0001'.
        runs: folder of the runs; the project's `.mmpipe/runs` when None.

    Returns:
        `RunLineage` of a run, `RowLineage` of a row.

    Raises:
        ConfigError: neither of them was given, or both.
        RunError: no such run, or a damaged record.

    >>> from mmpipe.train.example import example_run
    >>> run = example_run()
    >>> len(lineage(run).rows()), lineage(row='a', runs=run.path.parents[1]).seen
    (2, {'animals/0001': 'trained'})
    """
    if (run is None) == (row is None):
        raise ConfigError("lineage takes a run or a row: mm.lineage('shop/0007'), or mm.lineage(row='sku-0012').")
    if run is not None:
        return _of_run(open_run(run, runs=runs))
    assert row is not None
    seen, through = {}, {}
    for each in table(runs=runs).runs:
        seen[each.id], inherited = _what_of(row, _of_run(each))
        if inherited:
            through[each.id] = inherited
    return RowLineage(row, seen, through)


def _of_run(run: Run) -> RunLineage:
    found = [run]
    while (parent := found[-1].record.get('parent')) is not None:
        # Where the folder of all runs has moved, a parent lies beside its child still.
        beside = found[-1].path.parents[1] / parent['run']
        places = [place for place in (Path(parent['path']), beside) if (place / 'run.json').is_file()]
        if not places:
            return RunLineage(tuple(found), parent['run'])
        found.append(open_run(places[0]))
    return RunLineage(tuple(found))


def _what_of(row: str, behind: RunLineage) -> tuple[str, str]:
    """What a run had of a row, and the parent it was inherited from, if it was."""
    own = behind.runs[0]
    unknown = bool(behind.lost)
    for run in behind.runs:
        if not (run.path / 'train_rows.npy').is_file():
            unknown = True
        elif run.trained_on(_hashes(row, run)).any():
            return (TRAINED, '') if run is own else (INHERITED, run.id)
    if unknown:
        return UNKNOWN, ''
    return (MEASURED if np.isin(_hashes(row, own), own.val_rows()).any() else NO), ''


def _hashes(row: str, run: Run) -> np.ndarray:
    """The hash of a key as a run has stored it; in a mixture, it is mixed with the name of the source."""
    from mmpipe.data.order import mix, splitmix64
    from mmpipe.shards import key_hash

    found = [np.uint64(key_hash(row))]
    source, _, key = row.partition('/')
    if source in (run.record.get('snapshot') or {}).get('parts', {}):
        salt = np.uint64(mix(key_hash(source)))
        found = list(splitmix64(np.array([key_hash(key)], dtype=np.uint64) ^ salt))
    return np.array(found, dtype=np.uint64)


def _train_rows(run: Run) -> np.ndarray:
    if not (run.path / 'train_rows.npy').is_file():
        raise RunError(
            f'Run {run.id} ({run.status}) has not stored its rows: no train_rows.npy in {run.path}. It ended before '
            f'its first step; resume it, or leave it out.'
        )
    return run.train_rows()


def _behind(run: Run) -> dict[str, Any]:
    record = run.record
    factory, git, parent = record.get('factory') or {}, record.get('git') or {}, record.get('parent')
    # A transferred model is made by the factory of the run it comes from.
    name = f'{factory["module"]}:{factory["qualname"]}' if 'qualname' in factory else factory.get('kind')
    return {
        'run': run.id,
        'path': str(run.path),
        'status': run.status,
        'created': record.get('created'),
        'how': 'from scratch' if parent is None else f'{parent["kind"]} of {parent["run"]}',
        'parent': None if parent is None else parent['run'],
        'train_rows': len(_train_rows(run)),
        'val_rows': len(run.val_rows()),
        'digest': (record.get('rows') or {}).get('digest'),
        'snapshot': record.get('snapshot'),
        'code': {
            'factory': name,
            'fingerprint': factory.get('fingerprint'),
            'commit': git.get('commit'),
            'dirty': git.get('dirty'),
            'versions': record.get('versions'),
        },
        'weights': _weights(run),
    }


def _weights(run: Run) -> dict[str, Any] | None:
    """SHA-256 of the weights that `mm.load_model` gives, as noted when they were written; None before the first."""
    folder = run.newest_checkpoint()
    if folder is None:
        return None
    try:
        seal = json.loads((folder / 'checkpoint.json').read_text(encoding='utf-8'))
        files = seal['files']
        if 'model.safetensors' not in files:  # in pieces, whose digests are all in the seal
            return {'file': 'checkpoint.json', 'step': int(folder.name), 'sha256': seal['sha256']}
        name = 'average.safetensors' if 'average.safetensors' in files else 'model.safetensors'
        return {'file': name, 'step': int(folder.name), 'sha256': files[name]['sha256']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f'Checkpoint {folder} of run {run.id} is damaged: checkpoint.json cannot be read '
            f'({type(error).__name__}: {error}). Restore it, or delete its folder.'
        ) from error


def _snapshot_lines(snapshot: Mapping[str, Any] | None) -> list[str]:
    if snapshot is None:
        return ['none']
    lines = [f'{snapshot["id"]} in {snapshot["root"]}']
    for path, vector in (snapshot.get('versions') or {}).items():
        lines.append(f'  {path} at version {".".join(str(entry[1]) for entry in vector)}')
    for name, part in (snapshot.get('parts') or {}).items():
        lines += [f'  {name}: {line}' for line in _snapshot_lines(part)]
    return lines
