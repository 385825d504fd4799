"""Primary keys of rows by what a JSON column of theirs says, without reading anything else of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql

from mmpipe.store.tables import primary_key


def keys_where(table: Any, column: str, name: str, value: str) -> list[tuple[Any, ...]]:
    """Primary keys of the live rows whose JSON column holds an object with `value` under `name`, in order of row ids.

    Args:
        table: base table.
        column: stored JSON column.
        name: name of a member of the object.
        value: what it has to be.
    """
    from pixeltable.runtime import get_runtime

    path = table._tbl_version_path
    keys = primary_key(table)
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]) as connection:
        version = path.get_tbl_versions()[0].get()
        store = version.store_tbl
        stored = {each.name: each.sa_col for each in version.primary_key_columns()}
        live = (store.v_min_col <= version.version, store.v_max_col > version.version)
        # As parameters of SQL: an expression of Pixeltable would read every row and compare it in Python.
        member = version.cols_by_name[column].sa_col[name].astext
        query = (
            sql.select(*(stored[key] for key in keys)).where(*live, member == value).order_by(store.rowid_columns()[0])
        )
        return [tuple(row) for row in connection.execute(query)]
