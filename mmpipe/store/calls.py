"""Calls inside the expressions of computed columns, and the arguments that each row would give them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpipe.store.engine import start
from mmpipe.store.failure import machine_failure
from mmpipe.store.feed import Rowid
from mmpipe.store.made import tree_of
from mmpipe.store.rows import rowid_expressions, rowids_of, select_rows
from mmpipe.store.tables import path_of

ROWS = 1024  # base rows per question for row ids
PARTS = 8  # that rows are cut into when one of them raises


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a Python function of one cell in a column's expression.

    Args:
        path: importable name of the Pixeltable function, such as 'mmpipe.functions.image.embed_image'.
        function: the Python function under it.
        constants: arguments that are literals, by parameter.
        expressions: the others, as Pixeltable expressions.
        required: parameters that take no null: with one, Pixeltable does not call the function.
        nested: whether its arguments are computed by calls themselves.
    """

    path: str
    function: Any
    constants: Mapping[str, Any]
    expressions: Mapping[str, Any]
    required: frozenset[str]
    nested: bool


def calls_in(table: Any, column: str, made_again: Collection[tuple[str, str]]) -> list[Call]:
    """The calls in a stored computed column, those that others take as arguments first.

    Args:
        table: the table or view that declares the column.
        column: its name.
        made_again: (path, column) of stored columns whose stored values are not to be read: their expressions take
            their place.

    Returns:
        Calls of functions that can be imported, of one cell each, with an expression or literal for each argument.
    """
    start()
    from pixeltable.exprs import FunctionCall, Literal
    from pixeltable.runtime import get_runtime

    tables = {path_of(each): each for each in tree_of(table)}
    paths = [each._tbl_version_path for each in tables.values()]
    found = []
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=paths):
        versions = {name: each._tbl_version_path.get_tbl_versions()[0].get() for name, each in tables.items()}
        again = {versions[path].cols_by_name[name] for path, name in made_again if path in versions and name}
        expression = versions[path_of(table)].cols_by_name[column].value_expr.copy()
        for call in sorted(expression.subexprs(FunctionCall), key=lambda each: len(list(each.subexprs()))):
            function = _plain(call.fn)
            if function is None or not all(isinstance(at, int) for at in call.bound_idxs.values()):
                continue
            parts = {name: call.components[at] for name, at in call.bound_idxs.items()}
            expressions = {
                name: part.copy().resolve_computed_cols(resolve_cols=again)
                for name, part in parts.items()
                if not isinstance(part, Literal)
            }
            found.append(
                Call(
                    path=call.fn.self_path,
                    function=function,
                    constants={name: part.val for name, part in parts.items() if isinstance(part, Literal)},
                    expressions=expressions,
                    nested=any(True for part in expressions.values() for _ in part.subexprs(FunctionCall)),
                    required=frozenset(n for n, p in call.fn.signature.parameters.items() if not p.col_type.nullable),
                )
            )
    return found


def _plain(function: Any) -> Any:
    """The Python function of one cell that a Pixeltable function is over; None for others."""
    from pixeltable.func import CallableFunction

    if not isinstance(function, CallableFunction) or function.is_polymorphic or function.is_batched:
        return None
    if function.self_path is None:
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    plain = all(each.kind in named for each in inspect.signature(function.py_fn).parameters.values())
    return function.py_fn if plain else None


def rows_over(table: Any, rows: Sequence[int]) -> list[Rowid]:
    """Row ids of a table's or view's live rows over some base rows, sorted.

    Args:
        table: table or view.
        rows: base row ids, sorted.
    """
    first = rowid_expressions(table)[0]
    found: list[Rowid] = []
    for at in range(0, len(rows), ROWS):
        found += rowids_of(table.where(first.isin(list(rows[at : at + ROWS]))), table)
    return found


def arguments_of(table: Any, call: Call, rowids: Sequence[Rowid]) -> Iterator[dict[str, Any] | None]:
    """The arguments by name that rows give a call; None for a row whose arguments raise.

    Rows with a null that the function does not take are left out, as Pixeltable leaves them.

    Args:
        table: the table or view.
        call: of `calls_in`, with at least one expression.
        rowids: of its rows; read at once.
    """
    try:
        read = select_rows(table, table, rowids, {f'a_{name}': each for name, each in call.expressions.items()})
    except Exception as error:  # what a function in an argument raised; the rows beside it are good
        if machine_failure(error):  # no row did it, and none would be read in smaller parts
            raise
        if len(rowids) == 1:
            yield None
            return
        # A row that raises is asked again with each part that holds it, and so is its function: so few large steps.
        size = -(-len(rowids) // PARTS)
        for at in range(0, len(rowids), size):
            yield from arguments_of(table, call, rowids[at : at + size])
        return
    for values in read.values():
        named = {**call.constants, **{name: values[f'a_{name}'] for name in call.expressions}}
        if not any(named.get(name) is None for name in call.required & named.keys()):
            yield named
