"""The joins of a query: equalities between columns, so that keys tell which rows a change on either side is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import SchemaError
from mmpipe.store.expressions import filter_of, owners_of, tables_behind
from mmpipe.store.feed import LOOKUP_ROWS, Rowid, rowid_width, version_vector
from mmpipe.store.rows import rowid_expressions
from mmpipe.store.tables import base_of, path_of, primary_key, table_of_id

MANY = 'Make it an equality of columns, as in Items.join(Brands, on=Items.brand == Brands.name), or leave the join out'


@dataclass(frozen=True, kw_only=True)
class Join:
    """A table that is joined to those before it in a query.

    Args:
        table: the joined table or view.
        how: 'inner' or 'left'.
        left: columns of the tables before it.
        right: its columns that equal them, in the same order.
        unique: whether no two of its rows can be joined to one: the columns hold its primary key.
        before: query or table that `left` is of, without a filter.
    """

    table: Any
    how: str
    left: tuple[Any, ...]
    right: tuple[Any, ...]
    unique: bool
    before: Any

    def __str__(self) -> str:
        return ' and '.join(f'{left} = {right}' for left, right in zip(self.left, self.right, strict=True))


def joins_of(query: Any) -> tuple[list[Join], Any]:
    """The joins of a query, and the query with those alone that give each row one partner at most.

    Args:
        query: `pxt.Query`, or a table, which has none.

    Raises:
        SchemaError: a join whose rows cannot be told by keys, or a filter on the wrong side of one; says why.
    """
    clause = getattr(query, '_from_clause', None)
    if clause is None or not clause.join_clauses:
        return [], query
    tables = [table_of_id(path.tbl_id) for path in clause.tbls]
    bases = [path_of(base_of(table)) for table in tables]
    kept: list[int] = []
    joins: list[Join] = []
    for i, part in enumerate(clause.join_clauses):
        table, path = tables[i + 1], path_of(tables[i + 1])
        how = part.join_type.name.lower()
        if how not in ('inner', 'left'):
            raise SchemaError(f"'{path}' is joined by how='{how}': a snapshot follows inner and left joins. {MANY}.")
        if bases[i + 1] in bases[: i + 1]:
            raise SchemaError(
                f"'{path}' is joined to a table of its own tree, over '{bases[i + 1]}', which Pixeltable makes a cross "
                f'join of. Columns of a base are those of its views, too; rows of a component view come in with '
                f'mm.field.pooled(mean_pool(...)).'
            )
        pairs = [_sides(predicate, path, table) for predicate in _parts(part.join_predicate)]
        unique = rowid_width(table) == 1 and bool(primary_key(table))
        unique = unique and set(primary_key(table)) <= {right.col_md.name for _, right in pairs}
        before = _first(query, kept)
        known = {entry[0] for j in [0, *(k + 1 for k in kept)] for entry in version_vector(tables[j])}
        for left, _ in pairs:
            if not owners_of(left) <= known:
                raise SchemaError(
                    f"'{path}' is joined by {left}, a column of a table with several rows to one of "
                    f"'{path_of(tables[0])}'. Join it by a column of a table before that."
                )
        joins.append(
            Join(
                table=table,
                how=how,
                left=tuple(left for left, _ in pairs),
                right=tuple(right for _, right in pairs),
                unique=unique,
                before=before,
            )
        )
        if unique:
            kept.append(i)
    _check_filter(query, tables[0], joins)
    reading = _first(query, kept)
    return joins, reading if filter_of(query) is None else reading.where(filter_of(query))


def rows_with(join: Join, table: Any, values: Sequence[Sequence[Any]]) -> set[Rowid]:
    """Rowids of the rows of a query's first table to which a join may give a partner with one of these values.

    Args:
        join: the join.
        table: the first table of the query.
        values: per column of the join, the values that rows of the joined table have or had.
    """
    parts = rowid_expressions(table)
    names = {f'mmpipe_rowid_{i}': part for i, part in enumerate(parts)}
    found: set[Rowid] = set()
    for start in range(0, len(values[0]), LOOKUP_ROWS):
        condition = join.left[0].isin(list(values[0][start : start + LOOKUP_ROWS]))
        for left, those in zip(join.left[1:], values[1:], strict=True):
            condition &= left.isin(list(those))
        rows = join.before.where(condition).select(**names).collect()
        found |= {tuple(row[name] for name in names) for row in rows}
    return found


def select_joined(
    join: Join, keys: Sequence[tuple[Any, ...]], expressions: Mapping[str, Any], *, pooled: bool
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Values of expressions over the rows of a joined table, by the values of its columns in the join.

    Args:
        join: the join.
        keys: which of these values; one that holds None has no row.
        expressions: output name to expression; aggregates when `pooled`.
        pooled: aggregate the rows of each key; there is one entry for it then.
    """
    wanted = {key for key in keys if None not in key}
    if not wanted:
        return {}
    condition = join.right[0].isin(sorted({key[0] for key in wanted}))
    for i, right in enumerate(join.right[1:], 1):
        condition &= right.isin(sorted({key[i] for key in wanted}))
    names = {f'mmpipe_key_{i}': right for i, right in enumerate(join.right)}
    rows = join.table.where(condition)
    rows = (rows.group_by(*join.right) if pooled else rows).select(**names, **expressions).collect()
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        if key in wanted:
            found.setdefault(key, []).append({name: row[name] for name in expressions})
    return found


def _first(query: Any, kept: Sequence[int]) -> Any:
    """The first table of a query with some of its joins; the table itself for none."""
    from pixeltable import Query
    from pixeltable.query_clauses import FromClause

    clause = query._from_clause
    if not kept:
        return table_of_id(clause.tbls[0].tbl_id)
    tables = [clause.tbls[0], *(clause.tbls[i + 1] for i in kept)]
    return Query(from_clause=FromClause(tbls=tables, join_clauses=[clause.join_clauses[i] for i in kept]))


def _parts(predicate: Any) -> list[Any]:
    """The conditions that a predicate is the conjunction of."""
    from pixeltable.exprs import CompoundPredicate
    from pixeltable.exprs.globals import LogicalOperator

    if isinstance(predicate, CompoundPredicate) and predicate.operator is LogicalOperator.AND:
        return [part for each in predicate.components for part in _parts(each)]
    return [predicate]


def _sides(predicate: Any, path: str, table: Any) -> tuple[Any, Any]:
    """(column of the tables before, column of the joined table) of an equality."""
    from pixeltable.exprs import Comparison
    from pixeltable.exprs.globals import ComparisonOperator

    sides = list(predicate.components)
    if isinstance(predicate, Comparison) and predicate.operator is ComparisonOperator.EQ and len(sides) == 2:
        mine = {entry[0] for entry in version_vector(table)}
        inside = [bool(owners_of(side)) and owners_of(side) <= mine for side in sides]
        if all(side.is_column_ref for side in sides) and sorted(inside) == [False, True]:
            return (sides[0], sides[1]) if inside[1] else (sides[1], sides[0])
    raise SchemaError(
        f"'{path}' is joined on {predicate}: changes of its rows cannot be followed by keys then. {MANY}."
    )


def _check_filter(query: Any, table: Any, joins: Sequence[Join]) -> None:
    """Pixeltable filters a table before it is joined: what a left join lets through is not what SQL would."""
    if filter_of(query) is None:
        return
    behind = tables_behind(filter_of(query)) | owners_of(filter_of(query))
    for join in joins:
        if behind & {entry[0] for entry in version_vector(join.table)} and (join.how == 'left' or not join.unique):
            left = join.how == 'left'
            why = 'a left join keeps rows without a partner' if left else 'several of its rows may fit one'
            raise SchemaError(
                f"the filter reads '{path_of(join.table)}', and {why}: {filter_of(query)} is not told for a row of "
                f"'{path_of(table)}'. Filter the rows of '{path_of(table)}', or join how='inner' by the primary key."
            )
