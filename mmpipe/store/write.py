"""Insert, replace and update rows, each call all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sql

from mmpipe.errors import StoreError
from mmpipe.store.plain import LAST_VERSION, Key, among_keys
from mmpipe.store.rows import rowid_expressions
from mmpipe.store.tables import media_columns, path_of, primary_key
from mmpipe.store.writing import Writing, writing


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one write did.

    Args:
        rows: rows of the table written.
        view_rows: rows of its views written.
        failed_cells: cells of computed columns whose UDF raised; they are null and carry the error.
        columns: names of the columns with such cells, as 'table.column'.
        writing: row ids and versions that it made.
        updated: row ids of rows that were there before.
        made: columns that were computed for those, as 'table.column'.
        recomputed: whether nothing else of those rows changed.
    """

    rows: int = 0
    view_rows: int = 0
    failed_cells: int = 0
    columns: tuple[str, ...] = ()
    writing: Writing = field(default_factory=Writing)
    updated: tuple[int, ...] = ()
    made: tuple[str, ...] = ()
    recomputed: bool = False


def _rowids(table: Any, keys: Sequence[Key]) -> dict[Key, int]:
    """Row ids of the rows with these primary keys.

    In SQL of our own: for any condition that it writes, Pixeltable reads the whole table, once per chunk of an ingest.
    """
    from pixeltable.runtime import get_runtime

    if not keys:
        return {}
    path = table._tbl_version_path
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]) as connection:
        version = path.get_tbl_versions()[0].get()
        store = version.store_tbl
        columns = [column.sa_col for column in path.columns() if column.is_pk]
        given, same = among_keys(columns, keys)
        live = store.v_max_col == LAST_VERSION
        query = sql.select(store.rowid_columns()[0], *columns).join_from(store.sa_tbl, given, sql.and_(live, *same))
        return {tuple(row[1:]): row[0] for row in connection.execute(query)}


def _among(table: Any, rowids: Iterable[int]) -> Any:
    return rowid_expressions(table)[0].isin(sorted(rowids))


def rows_with_keys(
    table: Any, keys: Sequence[Key], columns: Sequence[str], *, files: Sequence[str] = ()
) -> dict[Key, dict]:
    """Stored values of some columns, and URLs of the files of some media columns, for rows with these primary keys."""
    rowids = _rowids(table, keys)
    if not rowids:
        return {}
    names = primary_key(table)
    selected = {f'c_{name}': getattr(table, name) for name in dict.fromkeys([*names, *columns])}
    selected |= {f'c_{name}': getattr(table, name).fileurl for name in files}
    result = table.where(_among(table, rowids.values())).select(**selected).collect()
    wanted = (*columns, *files)
    return {tuple(row[f'c_{n}'] for n in names): {name: row[f'c_{name}'] for name in wanted} for row in result}


def replace_rows(table: Any, rows: Sequence[dict[str, Any]], stale_keys: Sequence[Key]) -> Written:
    """Insert rows, and delete the rows with `stale_keys` before, in one transaction.

    Pixeltable cannot update a media column, so a changed file is a delete and an insert. Both run inside one of its
    transactions: a crash or an error leaves the old rows, and no reader sees the table between the two.

    Raises:
        StoreError: Pixeltable refused, or could not read a file, whose path it would have lost; nothing was written.
        Exception: whatever an iterator of a view or the database raised; nothing was written either.
    """
    from pixeltable.exceptions import Error

    # None of these can be asked inside a transaction.
    name, media = table.get_metadata()['name'], media_columns(table)
    old = _rowids(table, stale_keys)
    stale = _among(table, old.values()) if old else None
    try:
        with writing(table) as done:
            if stale is not None:
                table.delete(where=stale)
            status = table.insert(list(rows), on_error='ignore')
            lost = [column for column in media if f'{name}.{column}' in status.cols_with_excs]
            if lost:
                raise StoreError(f'Pixeltable cannot read the file in column {", ".join(lost)}')
    except Error as error:
        raise StoreError(f'{error}') from error
    return Written(
        rows=status.row_count_stats.ins_rows,
        view_rows=status.cascade_row_count_stats.ins_rows,
        failed_cells=status.num_excs,
        columns=tuple(status.cols_with_excs),
        writing=done,
    )


def delete_rows(table: Any, keys: Sequence[Key]) -> int:
    """Delete the rows with these primary keys; returns how many there were."""
    rowids = _rowids(table, keys)
    return table.delete(where=_among(table, rowids.values())).row_count_stats.del_rows if rowids else 0


def update_rows(table: Any, rows: Sequence[dict[str, Any]]) -> Written:
    """Set columns of existing rows, found by primary key; all rows must set the same columns.

    Only the computed columns that depend on a changed column are computed again. When one of their functions raises,
    its exception comes through and nothing is written: Pixeltable's update cannot keep the error in the cell.
    """
    names = primary_key(table)
    keys = [tuple(row[name] for name in names) for row in rows]
    rowids = _rowids(table, keys)
    gone = [key for key in keys if key not in rowids]
    if gone:
        raise StoreError(f"'{path_of(table)}' has no row {gone[0]} any more: run the same again")
    by_rowid = [
        {'_rowid': (rowids[key],), **{name: value for name, value in row.items() if name not in names}}
        for key, row in zip(keys, rows, strict=True)
    ]
    with writing(table) as done:
        status = table.batch_update(by_rowid, cascade=True, if_not_exists='error')
    return _rewritten(status, done, rowids.values())


def recompute_rows(table: Any, columns: Sequence[str], rowids: Sequence[int]) -> Written:
    """Compute columns again for some base rows, and all columns that read them, those of views included.

    A cell whose function raises becomes null and keeps the error.

    Args:
        table: the table or view that declares the columns.
        columns: stored computed columns of it.
        rowids: base row ids.
    """
    with writing(table) as done:
        status = table.recompute_columns(*columns, where=_among(table, rowids), cascade=True)
    return replace(_rewritten(status, done, rowids), recomputed=True)


def _rewritten(status: Any, done: Writing, rowids: Iterable[int]) -> Written:
    return Written(
        rows=status.row_count_stats.num_rows,
        view_rows=status.cascade_row_count_stats.num_rows,
        failed_cells=status.num_excs,
        columns=tuple(status.cols_with_excs),
        writing=done,
        updated=tuple(rowids),
        made=tuple(status.updated_cols),
    )
