"""What a query and an expression are made of: Pixeltable has no public names for the parts of either."""

from __future__ import annotations

from typing import Any

from mmpipe.errors import SchemaError
from mmpipe.store.engine import start
from mmpipe.store.tables import table_of, table_of_id

NEVER = ('select_list', 'group_by_clause')
WHOLE = ('order_by_clause', 'limit_val', 'offset_val', 'sample_clause')


def source_of(query: Any, *, whole: bool = False) -> tuple[Any, Any]:
    """The table that a query reads, and what to select rows from.

    Args:
        query: bound table class, table, view, path, or a query of rows of one: filtered, joined.
        whole: take one whose rows depend on each other, too: ordered, limited or sampled.

    Returns:
        (table or view, the query itself or the table).

    Raises:
        SchemaError: a class that is not bound, a query made before its class was, or one that is no query of rows.
    """
    pxt = start()
    from pixeltable.catalog.model.query import ModelQuery

    if isinstance(query, ModelQuery):
        table_of(query.model_cls)  # raises for a class that is not bound
        raise SchemaError(
            f'this query was made before {query.model_cls.__name__} was bound to its table: make it after mm.apply'
        )
    if not isinstance(query, pxt.Query):
        table = table_of(query)
        return table, table
    used = [clause.rsplit('_', 1)[0] for clause in NEVER if getattr(query, clause) is not None]
    if used:
        raise SchemaError(
            f'a snapshot takes the rows of a table, a view, a `.where(...)` or a `.join(...)` of them; this query has '
            f'{", ".join(used)}. Name the fields in fields=, aggregates as mm.field.pooled(...), the rest in a view.'
        )
    if chosen_by(query) and not whole:
        raise SchemaError(
            f'which rows this query has depends on other rows ({chosen_by(query)}), so that a change of one cannot be '
            f'followed. Filter by columns instead, or pass full=True to compare every row each time.'
        )
    return table_of_id(query._from_clause.tbls[0].tbl_id), query


def chosen_by(query: Any) -> str:
    """The parts of a query by which its rows depend on each other, in words; '' for a query without."""
    parts = {clause.rsplit('_', 1)[0]: getattr(query, clause, None) for clause in WHOLE}
    if parts['order_by']:
        parts['order_by'] = ', '.join(f'{each}{"" if rising else " falling"}' for each, rising in parts['order_by'])
    return ', '.join(f'{name} {part}' for name, part in parts.items() if part is not None)


def filter_of(query: Any) -> Any:
    """The filter of a query; None where there is none, as of a table."""
    return getattr(query, 'where_clause', None)


def is_expression(value: Any) -> bool:
    """Whether a value is a Pixeltable expression."""
    start()
    from pixeltable.exprs import Expr

    return isinstance(value, Expr)


def tables_behind(expression: Any) -> set[str]:
    """Ids of the tables whose columns an expression names, each the table that the column came to it through."""
    return {str(ref.col_md.tbl_id) for ref in _references(expression)}


def owners_of(expression: Any) -> set[str]:
    """Ids of the tables that hold the columns an expression names: for a column that a view inherits, its base."""
    return {str(ref.col_md.qcolid.tbl_id) for ref in _references(expression)}


def id_of(table: Any) -> str:
    """Id of a table, as `version_vector` and `tables_behind` have it."""
    return str(table._tbl_path.tbl_id)


def column_id(expression: Any) -> tuple[str, str] | None:
    """(id of the table that holds it, name) of the column that an expression is; None for one that computes."""
    return (str(expression.col_md.qcolid.tbl_id), expression.col_md.name) if expression.is_column_ref else None


def aggregated(expression: Any) -> Any:
    """What an aggregate is over, such as the column of `mean_pool(column)`."""
    return expression.components[0]


def columns_in_scope(table: Any) -> list[str]:
    """Names of all columns of a table or view, those of its bases included."""
    return list(table._get_schema())


def _references(expression: Any) -> list[Any]:
    from pixeltable.exprs import ColumnRef

    return list(expression.subexprs(ColumnRef))
