"""Read a page of rows of a training view: keys, splits and values as they are stored, sources checked first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from mmpipe.store import Join, Rowid, id_of, path_of, primary_key, select_joined, select_rows
from mmpipe.store.expressions import column_id

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
    files = list(origins(view, page, keys)) if view.media else []
    check_sources(view, files)  # before anything is decoded: a damaged file would stop the select with its own error
    names = list(specs)
    plain = {name: f'f{i}' for i, name in enumerate(names) if not specs[name].pooled}
    expressions: dict[str, Any] = dict(keys)
    for name, column in plain.items():
        spec = specs[name]
        expressions[column] = spec.expression.localpath if spec.is_file else spec.expression
        if column_id(spec.expression) in view.computed:
            expressions[f'e{column}'] = spec.expression.errortype
    if view.split is not None:
        expressions['mmpipe_split'] = view.split
    found = read_rows(view, page, expressions)
    pooled = {path: _pooled(view, specs, path, found) for path in view.pooled}
    result = {}
    for rowid, row in found.items():
        values: dict[str, Any] = {}
        for i, name in enumerate(names):
            over = pooled_of(view, specs[name])
            values[name] = (row if over is None else pooled[over].get(rowid, {})).get(f'f{i}')
        failed = [name for name, column in plain.items() if row.get(f'e{column}') is not None]
        split = row.get('mmpipe_split') or ''
        result[rowid] = PageRow(key=key_of(rowid, row, keys), split=split, values=values, failed=failed)
    jobs = [(row, name) for row in result.values() for name in names]
    for (made, name), value in zip(jobs, pool.map(lambda job: _encoded(specs[job[1]], *job), jobs), strict=True):
        made.values[name] = value
    check_sources(view, files)  # and once more: a file may have been overwritten while it was read
    return result


def read_rows(view: TrainingView, page: Sequence[Rowid], expressions: Mapping[str, Any]) -> dict[Rowid, dict[str, Any]]:
    """Values of expressions for the rows of a page that are in the view: the filter and inner joins let them through.

    Raises:
        SnapshotError: an expression raised.
    """
    many = [join for join in view.joins if not join.unique]
    found = _select(view, page, {**expressions, **{name: left for join in many for name, left in _on(join).items()}})
    for join in many:
        if join.how == 'inner':
            there = select_joined(join, [_key(join, row) for row in found.values()], {}, pooled=True)
            found = {rowid: row for rowid, row in found.items() if _key(join, row) in there}
    return found


def _on(join: Join) -> dict[str, Any]:
    """Expressions of what a row is joined by, to select beside others and to give to `_key`."""
    return {f'mmpipe_on_{id_of(join.table)}_{i}'.replace('-', '_'): left for i, left in enumerate(join.left)}


def _key(join: Join, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _on(join))


def _pooled(
    view: TrainingView, specs: Mapping[str, FieldSpec], path: str, rows: Mapping[Rowid, Mapping[str, Any]]
) -> dict[Rowid, dict[str, Any]]:
    """Values of the fields that are pooled from one table, by row; none for a row without partners there."""
    table = view.pooled[path]
    mine = {f'f{i}': spec.expression for i, spec in enumerate(specs.values()) if pooled_of(view, spec) == path}
    join = next((join for join in view.joins if join.table is table), None)
    if join is None:
        found = select_rows(table, table, sorted({rowid[:1] for rowid in rows}), mine, pooled=True)
        return {rowid: found[rowid[:1]] for rowid in rows if rowid[:1] in found}
    joined = select_joined(join, [_key(join, row) for row in rows.values()], mine, pooled=True)
    return {rowid: joined[_key(join, row)][0] for rowid, row in rows.items() if _key(join, row) in joined}


def origins(view: TrainingView, page: Sequence[Rowid], keys: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(row key, path of the table, `origin` there) of all rows whose files the rows of a page are made from."""
    tables = {path: table for path, table in view.sources.items() if path in view.media}
    many = {path_of(join.table): join for join in view.joins if not join.unique and path_of(join.table) in tables}
    plain = {f'o{i}': getattr(tables[path], ORIGIN) for i, path in enumerate(tables) if path not in many}
    found = read_rows(view, page, {**keys, **plain})
    for i, path in enumerate(tables):
        if path not in many:
            yield from ((key_of(rowid, row, keys), path, row[f'o{i}']) for rowid, row in found.items())
            continue
        join = many[path]
        joined = select_joined(
            join, [_key(join, row) for row in found.values()], {'o': getattr(join.table, ORIGIN)}, pooled=False
        )
        for rowid, row in found.items():
            for each in joined.get(_key(join, row), ()):
                yield key_of(rowid, row, keys), path, each['o']


def pooled_of(view: TrainingView, spec: FieldSpec) -> str | None:
    """Path of the table a field is pooled from; None for a plain field."""
    return pooled_path(view.pooled, spec) if spec.pooled else None


def check_sources(view: TrainingView, rows: Iterable[tuple[str, str, Any]]) -> None:
    """Refuse rows whose files are not what was ingested.

    Args:
        view: the training view.
        rows: as `origins` gives them.

    Raises:
        SourceChangedError: a file is gone or holds other bytes; names the rows and files.
    """
    changed = []
    checked: dict[str, str] = {}  # the frames of a video share its file
    for key, path, origin in rows:
        for column, item in recorded({ORIGIN: origin}).items():
            if column not in view.media[path]:
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
            f"'{view.path}': {'; '.join(changed[:3])}{more}. {'. '.join(moves)}; then the snapshot again."
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
            f"rows of '{view.path}' cannot be read ({type(error).__name__}: {what:.300}). Make the "
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
