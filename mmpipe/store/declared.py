"""Declared table classes, and how their computed columns come into a table that has rows already."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from mmpipe.store.engine import start
from mmpipe.store.tables import path_of

_patching = threading.Lock()


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


def carry_out_column(table: Any, model: Any, column: str, action: Literal['add', 'alter']) -> bool:
    """Add a column to a table, or give one another expression, without computing it for the rows that are there.

    Pixeltable would compute all of them in the one statement, and a kill lose all of it; its `update_all` also gives up
    on an added column when one cell raises, and leaves the old values of an altered one in place.

    Args:
        table: Pixeltable table or view.
        model: the table class that declares it.
        column: a column of that class.
        action: what to do with it.

    Returns:
        False when nothing was done, since the column reads what is not there yet, or queries another table:
        `update_all` knows the order of those.
    """
    from pixeltable.catalog.model.definition import bind_query_templates
    from pixeltable.catalog.model.diff import base_query_columns, queried_models, user_columns
    from pixeltable.catalog.model.resolution import resolve_model_value_expr
    from pixeltable.exprs import ColumnRefByName, Expr

    if action == 'add' and column in table.columns():  # then it is an index that is added
        return False
    spec: dict[str, Any] = dict(user_columns(model)[column])
    declared = Expr.from_object(spec.pop('value')) if 'value' in spec else None
    if declared is None:
        table.add_columns({column: spec})
        return True
    kept = ('stored', 'destination', 'custom_metadata', 'comment')
    if action == 'add' and (spec.keys() - set(kept) or queried_models(user_columns(model)[column])):
        return False
    directory = path_of(table).rpartition('/')[0]
    origin: Literal['base_query', 'model_body'] = 'base_query' if column in base_query_columns(model) else 'model_body'
    value = bind_query_templates(declared.copy(), f'{directory}/' if directory else '')
    value = resolve_model_value_expr(table._tbl_path, value, origin)
    if any(True for _ in value.subexprs(ColumnRefByName)):
        return False
    if action == 'alter':
        table.alter_computed_column(recompute=False, **{column: value})
        return True
    with _columns_left_empty():
        table.add_computed_column(**spec, **{column: value})
    return True


@contextmanager
def _columns_left_empty() -> Iterator[None]:
    """Columns that this thread adds get no values; Pixeltable has no option for it, as it has for those it alters."""
    from pixeltable.store import StoreBase

    mine = threading.get_ident()
    with _patching:
        write = StoreBase.write_column

        def nothing(self: Any, *args: Any, **kwargs: Any) -> int:
            return 0 if threading.get_ident() == mine else write(self, *args, **kwargs)

        setattr(StoreBase, 'write_column', nothing)  # noqa: B010 (mypy refuses to assign a method)
        try:
            yield
        finally:
            setattr(StoreBase, 'write_column', write)  # noqa: B010
