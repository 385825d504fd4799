"""Stored values by SQL of our own: what Pixeltable's select gives, without the work that it does for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql

# Written into the statement, not bound: Postgres has to see that the index is about just these.
INDEXED: Any = sql.literal_column('256')  # characters of a key
LAST_VERSION: Any = sql.literal_column(str(2**63 - 1))  # what Pixeltable gives live rows

Key = tuple[Any, ...]


def is_plain(kind: Any) -> bool:
    """Whether Pixeltable takes values of a column type from Postgres as they are.

    Arrays and bytes are put together from files when they are large, and media are opened or made local.

    >>> import pixeltable.type_system as ts
    >>> is_plain(ts.StringType()), is_plain(ts.BinaryType())
    (True, False)
    """
    return (
        kind.is_string_type() or kind.is_int_type() or kind.is_float_type() or kind.is_bool_type()
        or kind.is_timestamp_type() or kind.is_date_type() or kind.is_uuid_type() or kind.is_json_type()
    )  # fmt: skip


def plain_rows(
    table: Any, keys: Sequence[Key], columns: Sequence[str], *, members: Sequence[tuple[str, ...]] = ()
) -> dict[Key, tuple[Any, ...] | None]:
    """Values of some columns of the rows with these primary keys, in one statement.

    Args:
        table: base table.
        keys: primary keys, each once.
        columns: stored columns; `is_plain` of their types.
        members: each a JSON column and the names that lead to a member of its value, which comes as the text that
            Postgres writes: strings as they are, everything else as JSON with a space behind each comma and colon.

    Returns:
        Key to the values of the columns, then of the members, null where there is none. None for a row in which a part
        of a JSON value lies in a file: Pixeltable's own select has to put it together.
    """
    from pixeltable.runtime import get_runtime

    if not keys:
        return {}
    path = table._tbl_version_path
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]) as connection:
        version = path.get_tbl_versions()[0].get()
        store, stored = version.store_tbl, version.cols_by_name
        chosen = [stored[name].sa_col for name in columns]
        chosen += [stored[name].sa_col[tuple(way)].astext for name, *way in members]
        about = [stored[name].sa_cellmd_col for name in columns if stored[name].col_type.is_json_type()]
        apart = sql.or_(sql.false(), *(each.is_not(None) for each in about))
        found = [column.sa_col for column in path.columns() if column.is_pk]
        given, same = among_keys(found, keys)
        live = (store.v_min_col <= version.version, store.v_max_col == LAST_VERSION)
        query = sql.select(*found, apart, *chosen).join_from(store.sa_tbl, given, sql.and_(*live, *same))
        rows = connection.execute(query).all()
    width = len(keys[0])
    return {tuple(row[:width]): None if row[width] else tuple(row[width + 1 :]) for row in rows}


def among_keys(columns: Sequence[Any], keys: Sequence[Key]) -> tuple[Any, list[Any]]:
    """A table of keys to join with, and the conditions of the join that the index of the primary key answers.

    The index is over the first 256 characters of a key, and no condition that Pixeltable writes can use it.

    Args:
        columns: primary key columns of the store's table.
        keys: at least one.
    """
    arrays = [sql.literal([key[i] for key in keys], postgresql.ARRAY(column.type)) for i, column in enumerate(columns)]
    given = sql.func.unnest(*arrays).table_valued(*(f'key_{i}' for i in range(len(columns)))).render_derived()
    same = []
    for column, want in zip(columns, given.c, strict=True):
        same.append(column == want)
        if isinstance(column.type, sql.String):
            same.append(sql.func.left(column, INDEXED) == sql.func.left(want, INDEXED))
    return given, same
