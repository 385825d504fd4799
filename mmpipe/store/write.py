"""Insert, replace and update rows, each call all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql

from mmpipe.errors import StoreError
from mmpipe.store.rows import rowid_expressions
from mmpipe.store.tables import media_columns, path_of, primary_key
from mmpipe.store.writing import Writing, writing

# Written into the statement, not bound: Postgres has to see that the index is about just these.
INDEXED: Any = sql.literal_column('256')  # characters of a key
LAST_VERSION: Any = sql.literal_column(str(2**63 - 1))  # what Pixeltable gives live rows


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


def _rowids(table: Any, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """Row ids of the rows with these primary keys.

    In SQL of our own, since the index is over the first 256 characters of a key and over live rows, and no condition
    that Pixeltable writes can use it: it reads the whole table, once per chunk of an ingest.
    """
    from pixeltable.runtime import get_runtime

    names, path = primary_key(table), table._tbl_version_path
    if not keys:
        return {}
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]) as connection:
        version = path.get_tbl_versions()[0].get()
        store = version.store_tbl
        stored = {column.name: column.sa_col for column in version.primary_key_columns()}
        columns = [stored[name] for name in names]
        arrays = [
            sql.literal([key[i] for key in keys], postgresql.ARRAY(column.type)) for i, column in enumerate(columns)
        ]
        given = sql.func.unnest(*arrays).table_valued(*(f'key_{i}' for i in range(len(names)))).render_derived()
        same = []
        for column, want in zip(columns, given.c, strict=True):
            same.append(column == want)
            if isinstance(column.type, sql.String):
                same.append(sql.func.left(column, INDEXED) == sql.func.left(want, INDEXED))
        live = store.v_max_col == LAST_VERSION
        query = sql.select(store.rowid_columns()[0], *columns).join_from(store.sa_tbl, given, sql.and_(live, *same))
        return {tuple(row[1:]): row[0] for row in connection.execute(query)}


def _among(table: Any, rowids: Iterable[int]) -> Any:
    return rowid_expressions(table)[0].isin(sorted(rowids))


def rows_with_keys(
    table: Any, keys: Sequence[tuple[Any, ...]], columns: Sequence[str], *, files: Sequence[str] = ()
) -> dict[tuple[Any, ...], dict]:
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


def replace_rows(table: Any, rows: Sequence[dict[str, Any]], stale_keys: Sequence[tuple[Any, ...]]) -> Written:
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


def delete_rows(table: Any, keys: Sequence[tuple[Any, ...]]) -> int:
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
