"""How computed columns are made: their expressions, with the functions and constants in them. And component rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import StoreError
from mmpipe.store.engine import start
from mmpipe.store.expressions import id_of
from mmpipe.store.tables import base_of, computed_columns, path_of, views_of


@dataclass(frozen=True, kw_only=True)
class Made:
    """One stored computed column, or how the rows of a component view are made.

    Args:
        table: path of the table or view that declares it.
        column: its name; '' for the iterator of a component view.
        expression: as Pixeltable prints it.
        calls: (function, constants by parameter name) of every function in it.
        inputs: stored computed columns it reads, as (path, column), of its own table or a base.
    """

    table: str
    column: str
    expression: str
    calls: tuple[tuple[Any, dict[str, Any]], ...]
    inputs: tuple[tuple[str, str], ...] = ()


def tree_of(table: Any) -> list[Any]:
    """The base table under a table or view, and all views over it."""
    base = base_of(table)
    return [base, *views_of(base)]


def made_columns(table: Any) -> Iterator[Made]:
    """The stored computed columns of a base table and of all views over it, and the iterators of component views.

    Args:
        table: any table or view of the tree.

    Raises:
        StoreError: the code of a column cannot be imported in this process.
    """
    start()
    from pixeltable.exprs import ColumnRef
    from pixeltable.runtime import get_runtime

    tables = {path_of(each): each for each in tree_of(table)}  # asking for a path is a query
    own = {name: computed_columns(each) for name, each in tables.items()}
    paths = {id_of(each): name for name, each in tables.items()}
    for place, each in tables.items():
        path = each._tbl_version_path
        with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]):
            version = path.get_tbl_versions()[0].get()
            found = [
                (column.name, column.value_expr.copy())
                for column in version.cols_by_name.values()
                if column.name in own[place]
            ]
            call = version.iterator_call
        if call is not None:
            text = ', '.join(f'{name}={value}' for name, value in sorted(call.bound_args.items()))
            function = (call.it, _constants(call.bound_args))
            yield Made(table=place, column='', expression=f'{call.it.fqn}({text})', calls=(function,))
        for name, expression in found:
            if not expression.is_valid:
                raise StoreError(
                    f"'{place}.{name}' is computed by {expression}, which cannot be imported here. Run from "
                    f'the project that holds its code, or put its folder on PYTHONPATH.'
                )
            references = [ref.col_md for ref in expression.subexprs(ColumnRef)]
            inputs = {(paths.get(str(ref.qcolid.tbl_id), ''), ref.name) for ref in references}
            yield Made(
                table=place,
                column=name,
                expression=str(expression),
                calls=tuple(calls_of(expression)),
                inputs=tuple(sorted(pair for pair in inputs if pair[1] in own.get(pair[0], ()))),
            )


def calls_of(expression: Any) -> list[tuple[Any, dict[str, Any]]]:
    """(function, constants by parameter name) of every function in an expression."""
    return list(_calls(expression))


def _calls(expression: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    from pixeltable.exprs import FunctionCall

    for call in expression.subexprs(FunctionCall):
        parts = {name: at for name, at in call.bound_idxs.items() if isinstance(at, int)}
        yield call.fn, _constants({name: call.components[at] for name, at in parts.items()})


def _constants(arguments: dict[str, Any]) -> dict[str, Any]:
    from pixeltable.exprs import Literal

    return {name: part.val for name, part in arguments.items() if isinstance(part, Literal)}


def next_row_id(table: Any) -> int:
    """The row id that the next row of a base table will get: rows that are there have smaller ones."""
    from pixeltable.runtime import get_runtime

    path = base_of(table)._tbl_version_path
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]):
        return path.get_tbl_versions()[0].get().next_row_id
