"""Read a page of rows of a training view: keys, splits and values as they are stored, sources checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import SnapshotError, SourceChangedError
from mmpipe.snapshots.field import FieldSpec, encode_value
from mmpipe.snapshots.view import TrainingView, pooled_path
from mmpipe.sources.media import digest_file, stamp
from mmpipe.sources.origin import ORIGIN, recorded
from mmpipe.store import Rowid, path_of, primary_key, select_rows
from mmpipe.store.expressions import column_name

GONE = 'is gone'


@dataclass(kw_only=True)
class PageRow:
    """One row, ready to be written.

    Args:
        key: its name in the snapshot.
        split: its split; '' for none.
        values: field name to value as `mmpipe.shards.field.encode` takes it; None for null.
        failed: fields whose computed cell holds an error.
    """

    key: str
    split: str
    values: dict[str, Any]
    failed: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the values in memory, roughly."""
        return sum(size_of(value) for value in self.values.values())


def read_page(
    view: TrainingView, specs: Mapping[str, FieldSpec], page: Sequence[Rowid], pool: ThreadPoolExecutor
) -> dict[Rowid, PageRow]:
    """Rows of one page; those that the filter leaves out are not in it.

    Args:
        view: the training view.
        specs: its fields, resolved.
        page: rowids.
        pool: threads that encode images and read files.

    Raises:
        SourceChangedError: a file is gone or holds other bytes than when it was ingested.
        SnapshotError: an expression raised, or a value cannot be encoded.
    """
    keys = key_expressions(view)
    if view.media:  # before anything is decoded: a damaged file would stop the select with an error of its own
        heads = _select(view, page, {**keys, 'mmpipe_origin': getattr(view.table, ORIGIN)})
        check_sources(view, {key_of(rowid, row, keys): row['mmpipe_origin'] for rowid, row in heads.items()})
    names = list(specs)
    plain = {name: f'f{i}' for i, name in enumerate(names) if not specs[name].pooled}
    expressions: dict[str, Any] = dict(keys)
    for name, column in plain.items():
        spec = specs[name]
        expressions[column] = spec.expression.localpath if spec.is_file else spec.expression
        if column_name(spec.expression) in view.computed:
            expressions[f'e{column}'] = spec.expression.errortype
    if view.split is not None:
        expressions['mmpipe_split'] = view.split
    found = _select(view, page, expressions)
    pooled: dict[str, dict[Rowid, dict[str, Any]]] = {}
    for path, table in view.pooled.items():
        mine = {f'f{i}': specs[n].expression for i, n in enumerate(names) if pooled_of(view, specs[n]) == path}
        pooled[path] = select_rows(table, table, sorted({rowid[:1] for rowid in found}), mine, pooled=True)
    result = {}
    for rowid, row in found.items():
        values: dict[str, Any] = {}
        for i, name in enumerate(names):
            over = pooled_of(view, specs[name])
            values[name] = (row if over is None else pooled[over].get(rowid[:1], {})).get(f'f{i}')
        failed = [name for name, column in plain.items() if row.get(f'e{column}') is not None]
        split = row.get('mmpipe_split') or ''
        result[rowid] = PageRow(key=key_of(rowid, row, keys), split=split, values=values, failed=failed)
    jobs = [(row, name) for row in result.values() for name in names]
    for (made, name), value in zip(jobs, pool.map(lambda job: _encoded(specs[job[1]], *job), jobs), strict=True):
        made.values[name] = value
    return result


def pooled_of(view: TrainingView, spec: FieldSpec) -> str | None:
    """Path of the component view a field is pooled from; None for a plain field."""
    return pooled_path(view.pooled, spec) if spec.pooled else None


def check_sources(view: TrainingView, rows: Mapping[str, Any]) -> None:
    """Refuse rows whose files are not what was ingested.

    Args:
        view: the training view.
        rows: row key to the row's `origin`.

    Raises:
        SourceChangedError: a file is gone or holds other bytes; names the rows and files.
    """
    changed = []
    checked: dict[str, str] = {}  # the frames of a video share its file
    for key, origin in rows.items():
        for column, item in recorded({ORIGIN: origin}).items():
            if column not in view.media:
                continue
            if item['path'] not in checked:
                checked[item['path']] = _difference(Path(item['path']), item)
            if checked[item['path']]:
                changed.append(f"row '{key}', column {column}: '{item['path']}' {checked[item['path']]}")
    if changed:
        more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
        moves = ['Ingest the changed files again'] if any(not text.endswith(GONE) for text in changed) else []
        if any(text.endswith(GONE) for text in changed):
            moves.append('Put back what is gone, or take its rows out of the source and ingest with --prune')
        raise SourceChangedError(
            f"'{path_of(view.table)}': {'; '.join(changed[:3])}{more}. {'. '.join(moves)}; then the snapshot again."
        )


def _difference(path: Path, item: Mapping[str, Any]) -> str:
    if not path.is_file():
        return GONE
    if stamp(path) != item['stamp'] and digest_file(path) != item['digest']:
        return 'has other content than when it was ingested'
    return ''


def _select(view: TrainingView, page: Sequence[Rowid], expressions: Mapping[str, Any]) -> dict[Rowid, dict[str, Any]]:
    try:
        return select_rows(view.query, view.table, page, expressions)
    except Exception as error:
        what = ' '.join(str(error).split('Stack:')[0].split())
        raise SnapshotError(
            f"rows of '{path_of(view.table)}' cannot be read ({type(error).__name__}: {what:.300}). Make the "
            f'expression that fails a computed column of the table, where a failing cell is null, or filter the row out'
        ) from error


def key_expressions(view: TrainingView) -> dict[str, Any]:
    """Expressions of the primary key of a view's rows, to select beside others and to give to `key_of`."""
    return {f'k{i}': getattr(view.table, name) for i, name in enumerate(primary_key(view.table))}


def key_of(rowid: Rowid, row: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """The primary key, its parts told apart by '/', and the place of a component row behind it."""
    parts = [str(row[name]) for name in keys] or [str(rowid[0])]
    if len(parts) > 1:
        parts = [part.replace('%', '%25').replace('/', '%2F') for part in parts]
    return '/'.join([*parts, *(str(part) for part in rowid[1:])])


def _encoded(spec: FieldSpec, row: PageRow, name: str) -> Any:
    try:
        return encode_value(spec, row.values[name])
    except Exception as error:
        raise SnapshotError(
            f"field '{name}' of row '{row.key}' cannot be encoded ({type(error).__name__}: {error}). "
            f'Mend the file and ingest it again, or filter the row out.'
        ) from error


def size_of(value: Any) -> int:
    """Bytes a value takes in memory, roughly.

    >>> size_of(np.zeros(3, 'float32')), size_of(None)
    (12, 8)
    """
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes, list)) else 8
