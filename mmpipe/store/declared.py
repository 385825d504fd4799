"""Declared table classes, and how their computed columns come into a table that has rows already."""

from __future__ import annotations

import sys
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


def refusal(model: Any, *, new: bool) -> tuple[str, str] | None:
    """What Pixeltable would refuse of a table class, asked before anything is created.

    Args:
        model: a table class.
        new: whether its table is still to be made; then all of the class is tried.

    Returns:
        (column, Pixeltable's reason), the column '' where it names none; None when it takes the class.
    """
    pxt = start()
    from pixeltable.catalog.column import Column
    from pixeltable.catalog.model.definition import TableModelMeta
    from pixeltable.catalog.model.diff import user_columns

    own = {name for name in dir(TableModelMeta) if not name.startswith('_')}  # what binding a class needs of it
    for column in user_columns(model):
        if column in own:
            return column, 'the name is one of the attributes of a table class'
        try:
            Column.validate_name(column)
        except pxt.Error as error:
            return column, str(error).partition(';')[0]
    try:
        if new:
            TableModelMeta.table_path(model)
    except pxt.Error as error:
        return '', str(error)
    return None


def refused_addition(model: Any, column: str, *, rows: int, view: bool) -> tuple[str, str] | None:
    """Why a plain column cannot be added to a table that is there.

    Args:
        model: the table class that declares it.
        column: a column of that class.
        rows: rows of the table.
        view: whether the table is a view.

    Returns:
        (reason, the next move); None when it can be added.
    """
    from pixeltable.catalog.globals import col_type_from_spec
    from pixeltable.catalog.model.diff import user_columns

    spec = user_columns(model).get(column)
    if spec is None or 'value' in spec:
        return None
    if spec.get('primary_key'):
        return 'a primary key is given when a table is made', 'declare the table under a new name, and ingest into it'
    kind = col_type_from_spec(spec)
    if kind.nullable or not (rows or view):
        return None
    reason = f'{kind!r} takes no null, which is what the rows there would hold'
    return reason, f'declare it pxt.{kind!r} | None, or write pxt.Column(type=... | None)'


def file_of(model: Any) -> str:
    """The file that declares a class; '' when it is not in one."""
    return getattr(sys.modules.get(model.__module__), '__file__', None) or ''


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
