"""Declared table classes, and how their computed columns come into a table that has rows already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mmpipe.store.engine import start
from mmpipe.store.tables import path_of


def declared_models(tables: Any) -> Mapping[str, Any] | None:
    """The table classes under a base class by name; None for what is no such base class.

    Args:
        tables: base class made by `pxt.model_base()`.
    """
    return getattr(tables, '__registered_models__', None)


def column_functions(tables: Any) -> dict[str, str]:
    """The outermost function of each computed column of some table classes.

    Args:
        tables: base class made by `pxt.model_base()`.

    Returns:
        'table.column' to the function's name; columns whose expression is no function call are left out.
    """
    start()
    from pixeltable.catalog.model.diff import user_columns
    from pixeltable.exprs import Expr, FunctionCall

    found = {}
    for name, model in (declared_models(tables) or {}).items():
        for column, spec in user_columns(model).items():
            value = Expr.from_object(spec['value']) if 'value' in spec else None
            if isinstance(value, FunctionCall):
                found[f'{name}.{column}'] = value.fn.name
    return found


def carry_out_column(table: Any, model: Any, column: str, action: Literal['add', 'alter']) -> list[str] | None:
    """Add a column to a table, or compute one again with another expression, keeping the errors of single cells.

    Pixeltable's `update_all` gives up on an added column when one cell raises, and leaves the old values of an altered
    one in place.

    Args:
        table: Pixeltable table or view.
        model: the table class that declares it.
        column: a column of that class.
        action: what to do with it.

    Returns:
        Columns with cells whose function raised, as 'table.column'. None when nothing was done, since the column reads
        what is not there yet, or queries another table: `update_all` knows the order of those.
    """
    from pixeltable.catalog.model.definition import bind_query_templates
    from pixeltable.catalog.model.diff import base_query_columns, queried_models, user_columns
    from pixeltable.catalog.model.resolution import resolve_model_value_expr
    from pixeltable.exprs import ColumnRefByName, Expr

    if action == 'add' and column in table.columns():  # then it is an index that is added
        return None
    spec: dict[str, Any] = dict(user_columns(model)[column])
    declared = Expr.from_object(spec.pop('value')) if 'value' in spec else None
    if declared is None:
        table.add_columns({column: spec})
        return []
    kept = ('stored', 'destination', 'custom_metadata', 'comment')
    if action == 'add' and (spec.keys() - set(kept) or queried_models(user_columns(model)[column])):
        return None
    directory = path_of(table).rpartition('/')[0]
    origin: Literal['base_query', 'model_body'] = 'base_query' if column in base_query_columns(model) else 'model_body'
    value = bind_query_templates(declared.copy(), f'{directory}/' if directory else '')
    value = resolve_model_value_expr(table._tbl_path, value, origin)
    if any(True for _ in value.subexprs(ColumnRefByName)):
        return None
    if action == 'alter':
        status = table.alter_computed_column(**{column: value})
    else:
        status = table.add_computed_column(on_error='ignore', **spec, **{column: value})
    return list(status.cols_with_excs)
