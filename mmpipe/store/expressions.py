"""What a query and an expression are made of: Pixeltable has no public names for the parts of either."""

from __future__ import annotations

from typing import Any

from mmpipe.errors import SchemaError
from mmpipe.store.engine import start
from mmpipe.store.tables import table_of, table_of_query

CLAUSES = ('select_list', 'group_by_clause', 'order_by_clause', 'limit_val', 'offset_val', 'sample_clause')


def source_of(query: Any) -> tuple[Any, Any]:
    """The table that a query reads, and what to select rows from.

    Args:
        query: bound table class, table, view, path, or `.where(...)` of a table or view.

    Returns:
        (table or view, the query itself or the table).

    Raises:
        SchemaError: a class that is not bound, a query made before its class was, or one with more than a filter.
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
    used = [clause.rsplit('_', 1)[0] for clause in CLAUSES if getattr(query, clause) is not None]
    if used or len(query._from_clause.tbls) != 1 or query._from_clause.join_clauses:
        raise SchemaError(
            f'a snapshot takes a table, a view or a `.where(...)` of one; this query has {", ".join(used) or "join"}. '
            f'Name the fields in fields=, and put the rest into a view.'
        )
    return table_of_query(query), query


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


def column_name(expression: Any) -> str | None:
    """Name of the column that an expression is; None for one that computes something."""
    return expression.col_md.name if expression.is_column_ref else None


def aggregated(expression: Any) -> Any:
    """What an aggregate is over, such as the column of `mean_pool(column)`."""
    return expression.components[0]


def columns_in_scope(table: Any) -> list[str]:
    """Names of all columns of a table or view, those of its bases included."""
    return list(table._get_schema())


def _references(expression: Any) -> list[Any]:
    from pixeltable.exprs import ColumnRef

    return list(expression.subexprs(ColumnRef))
