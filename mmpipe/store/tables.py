"""Look up tables, their keys and columns: the questions the rest of the store side asks of a Pixeltable table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmpipe.errors import SchemaError
from mmpipe.store.engine import start
from mmpipe.wording import how_many


def table_of(source: Any) -> Any:
    """The Pixeltable table behind a bound table class, a table or a path.

    Args:
        source: table class of a `pxt.model_base()`, `pxt.Table`, or path such as 'shop/products'.

    Raises:
        SchemaError: a class that is not bound to a table yet, a path that names none, or something else.
    """
    pxt = start()
    from pixeltable.catalog.model.definition import TableModelMeta

    if isinstance(source, str):
        try:
            table = pxt.get_table(source, if_not_exists='ignore')
        except pxt.Error as error:
            raise SchemaError(
                f"'{source}' is no table: {error} pixeltable.list_tables() lists what there is."
            ) from error
        if table is None:
            raise SchemaError(f"there is no table '{source}'. pixeltable.list_tables() lists what there is.")
        return table
    if isinstance(source, TableModelMeta):
        if not source.is_bound:
            raise SchemaError(
                f'{source.__name__} is declared, but not bound to a table in this process. '
                f"Call mm.apply(mm.plan(Tables, '<directory>')), or Tables.bind_all('<directory>') when it is applied."
            )
        return source.table
    if isinstance(source, pxt.Table):
        return source
    raise SchemaError(f"{source!r:.80} is not a table. Give a table class, a pxt.Table or a path like 'shop/products'.")


def table_of_id(table_id: Any) -> Any:
    """The table or view with an id, as queries have it.

    Raises:
        SchemaError: there is none any more.
    """
    start()
    from pixeltable.runtime import get_runtime

    table = get_runtime().catalog.get_table_by_id(table_id)
    if table is None:
        raise SchemaError('the table of this query is gone from the catalog: make the query again')
    return table


def path_of(table: Any) -> str:
    """Catalog path of a table, as in 'shop/products'."""
    return str(table._path())


def base_of(table: Any) -> Any:
    """The base table at the bottom of a view's chain; the table itself when it is no view."""
    base = table.get_base_table()
    while base is not None:
        table, base = base, base.get_base_table()
    return table


def primary_key(table: Any) -> list[str]:
    """Names of the primary key columns, in order; those of the base for a view."""
    columns = base_of(table).get_metadata()['columns']
    return [name for name, column in columns.items() if column['is_primary_key']]


def column_types(table: Any) -> dict[str, Any]:
    """Stored, non-computed columns of a table with their Pixeltable types."""
    metadata = table.get_metadata()['columns']
    types = table._get_schema()
    return {name: types[name] for name, column in metadata.items() if not column['is_computed'] and name in types}


def views_of(table: Any) -> list[Any]:
    """All views over a table, nested ones included."""
    pxt = start()
    found = []
    for path in table.list_views(recursive=True):
        found.append(pxt.get_table(path))
    return found


def tables_in(directory: str) -> list[Any]:
    """The tables and views of a catalog directory, tables first; not those of directories in it."""
    pxt = start()
    if directory not in pxt.list_dirs():
        return []
    found = [pxt.get_table(path) for path in pxt.list_tables(directory, recursive=False)]
    return sorted(found, key=lambda table: (table.get_base_table() is not None, path_of(table)))


def computed_columns(table: Any) -> list[str]:
    """Names of the stored computed columns a table or view declares itself."""
    metadata = table.get_metadata()
    return [
        name
        for name, column in metadata['columns'].items()
        if column['is_computed'] and column['is_stored'] and column['defined_in'] == metadata['name']
    ]


def cell_errors(table: Any, columns: list[str] | None = None, *, limit: int = 3) -> dict[str, tuple[int, list[str]]]:
    """Cells of computed columns whose UDF raised.

    Args:
        table: table or view.
        columns: which of its computed columns to look at; all stored ones when None.
        limit: how many messages to fetch per column.

    Returns:
        Column name to (number of such cells, messages that name the row by its primary key), for columns that have any.
    """
    found = {}
    keys = {f'key_{i}': getattr(table, key) for i, key in enumerate(primary_key(table))}
    for name in computed_columns(table) if columns is None else columns:
        column = getattr(table, name)
        failed = table.where(column.errortype != None)  # noqa: E711 (Pixeltable overloads it)
        count = failed.count()
        if count:
            rows = failed.select(**keys, error=column.errortype, text=column.errormsg).limit(limit).collect()
            found[name] = (count, [_cell_error(row, list(keys)) for row in rows])
    return found


def failed_cells(table: Any, columns: list[str] | None = None) -> Iterator[str]:
    """For each column that has cells whose UDF raised a message: the first error, and the next move."""
    path = path_of(table)
    for name, (count, messages) in cell_errors(table, columns, limit=1).items():
        yield (
            f'{path}.{name}: {how_many(count, "cell is", "cells are")} null, since their function raised: '
            f"{messages[0]}. Correct it or the row, then mm.retry('{path.rpartition('/')[0]}')"
        )


def _cell_error(row: Any, keys: list[str]) -> str:
    text = f'{row["error"]}: {row["text"]}'
    return f"row '{'/'.join(str(row[key]) for key in keys)}': {text}" if keys else text


def lineage(table: Any, expression: Any, known: dict[int, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Every column an expression reads, the ones behind computed and iterator columns included.

    Args:
        table: the table or view the expression is over.
        expression: Pixeltable expression; columns of other tables in it, which a join brought, are left out.
        known: what was asked of tables before, for the next call: asking is dozens of queries.

    Returns:
        Column name to its Pixeltable metadata. An iterator's columns depend on the media columns of the table.
    """
    from pixeltable.exprs import ColumnRef

    known = {} if known is None else known
    if id(table) not in known:
        known[id(table)] = table.get_metadata()['columns'], list(media_columns(table)), _ids_in_chain(table), table
    columns, media, chain, _ = known[id(table)]
    found: dict[str, dict[str, Any]] = {}
    pending = [ref.col_md.name for ref in expression.subexprs(ColumnRef) if ref.col_md.qcolid.tbl_id in chain]
    while pending:
        name = pending.pop()
        if name in found or name not in columns:
            continue
        found[name] = columns[name]
        pending += [column for _, column in columns[name]['depends_on'] or []]
        if columns[name]['is_iterator_col']:
            pending += media
    return found


def _ids_in_chain(table: Any) -> set[Any]:
    found = set()
    while table is not None:
        found.add(table._tbl_path.tbl_id)
        table = table.get_base_table()
    return found


def media_columns(table: Any) -> dict[str, str]:
    """Stored, non-computed media columns of a table with the kind of each: image, video, audio or document."""
    columns = table.get_metadata()['columns']
    return {
        name: kind._type.name.lower()
        for name, kind in table._get_schema().items()
        if name in columns
        and kind.is_media_type()
        and not (columns[name]['is_computed'] or columns[name]['is_iterator_col'])
    }
