"""Insert, replace and update rows, each call all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import StoreError
from mmpipe.store.tables import media_columns, primary_key


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one write did.

    Args:
        rows: rows of the table written.
        view_rows: rows of its views written.
        failed_cells: cells of computed columns whose UDF raised; they are null and carry the error.
        columns: names of the columns with such cells, as 'table.column'.
    """

    rows: int = 0
    view_rows: int = 0
    failed_cells: int = 0
    columns: tuple[str, ...] = ()


def _matches(table: Any, keys: Sequence[tuple[Any, ...]]) -> Any:
    columns = [getattr(table, name) for name in primary_key(table)]
    if len(columns) == 1:
        return columns[0].isin([key[0] for key in keys])
    predicate = None
    for key in keys:
        row = None
        for column, value in zip(columns, key, strict=True):
            row = (column == value) if row is None else row & (column == value)
        predicate = row if predicate is None else predicate | row
    return predicate


def rows_with_keys(
    table: Any, keys: Sequence[tuple[Any, ...]], columns: Sequence[str], *, files: Sequence[str] = ()
) -> dict[tuple[Any, ...], dict]:
    """Stored values of some columns, and URLs of the files of some media columns, for rows with these primary keys."""
    if not keys:
        return {}
    names = primary_key(table)
    selected = {f'c_{name}': getattr(table, name) for name in dict.fromkeys([*names, *columns])}
    selected |= {f'c_{name}': getattr(table, name).fileurl for name in files}
    result = table.where(_matches(table, keys)).select(**selected).collect()
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
    from pixeltable.runtime import get_runtime

    path = table._tbl_version_path
    # None of these can be asked inside a transaction.
    name, media = table.get_metadata()['name'], media_columns(table)
    stale = _matches(table, stale_keys) if stale_keys else None
    try:
        with get_runtime().catalog.begin_xact(for_write=True, write_tvps=[path], lock_mutable_tree=True):
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
    )


def delete_rows(table: Any, keys: Sequence[tuple[Any, ...]]) -> int:
    """Delete the rows with these primary keys; returns how many there were."""
    return table.delete(where=_matches(table, keys)).row_count_stats.del_rows if keys else 0


def update_rows(table: Any, rows: Sequence[dict[str, Any]]) -> Written:
    """Set columns of existing rows, found by primary key; all rows must set the same columns.

    Only the computed columns that depend on a changed column are computed again. When one of their functions raises,
    its exception comes through and nothing is written: Pixeltable's update cannot keep the error in the cell.
    """
    status = table.batch_update(list(rows), cascade=True, if_not_exists='error')
    return Written(
        rows=status.row_count_stats.num_rows,
        view_rows=status.cascade_row_count_stats.num_rows,
        failed_cells=status.num_excs,
        columns=tuple(status.cols_with_excs),
    )
