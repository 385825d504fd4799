"""Read chosen rows of a query by their rowids, in pages of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmpipe.store.expressions import filter_of, owners_of
from mmpipe.store.feed import Rowid, rowid_width, version_vector


def rowid_expressions(table: Any) -> list[Any]:
    """Expressions for the parts of a table's rowid, to select or to filter by; Pixeltable has no public ones."""
    from pixeltable.exprs import RowidRef
    from pixeltable.runtime import get_runtime

    width = rowid_width(table)
    path = table._tbl_version_path
    with get_runtime().catalog.begin_xact(for_write=False, read_tvps=[path]):
        handle = path.get_tbl_versions()[0]
        return [RowidRef(handle, i) for i in range(width)]


def select_rows(
    query: Any, table: Any, rowids: Sequence[Rowid], expressions: Mapping[str, Any], *, pooled: bool = False
) -> dict[Rowid, dict[str, Any]]:
    """Values of expressions for the given rows of a query.

    Args:
        query: `pxt.Query` over `table` with a filter, and joins that give a row one partner at most; or the table.
        table: the table or view the query reads.
        rowids: which rows; when `pooled`, rowids of the base table, whose component rows are aggregated.
        expressions: output name to Pixeltable expression; aggregates when `pooled`.
        pooled: group the rows by the first part of their rowid.

    Returns:
        Rowid to values. Rows that the query's filter leaves out are not in it.
    """
    if not rowids:
        return {}
    parts = rowid_expressions(table)
    wanted = set(rowids)
    bases = sorted({rowid[0] for rowid in rowids})
    chosen = parts[0].isin(bases)
    if len(bases) == 1 and len(parts) > 1 and not pooled:  # a long video has more frames than a page
        chosen &= parts[1].isin(sorted({rowid[1] for rowid in rowids}))
    chosen = narrowed(query, table, chosen)
    parts = parts[:1] if pooled else parts
    names = [f'mmpipe_rowid_{i}' for i in range(len(parts))]
    if pooled:
        chosen = chosen.group_by(*parts)
    result = chosen.select(**dict(zip(names, parts, strict=True)), **expressions).collect()
    found = {}
    for row in result:
        rowid = tuple(row[name] for name in names)
        if rowid in wanted:
            found[rowid] = {name: row[name] for name in expressions}
    return found


def narrowed(query: Any, table: Any, condition: Any) -> Any:
    """A query over a table with one more condition; Pixeltable refuses a second `where`."""
    clause = filter_of(query)
    return unfiltered(query, table).where(condition if clause is None else clause & condition)


def unfiltered(query: Any, table: Any) -> Any:
    """A query with its joins alone; the table itself where there are none."""
    if not getattr(query, '_from_clause', None) or not query._from_clause.join_clauses:
        return table
    from pixeltable import Query

    return Query(from_clause=query._from_clause)


def rowids_of(query: Any, table: Any) -> list[Rowid]:
    """Rowids of the rows that a query has, sorted; one whose rows depend on each other is run whole."""
    names = {f'mmpipe_rowid_{i}': part for i, part in enumerate(rowid_expressions(table))}
    # Pixeltable orders joined rows only by what is selected.
    order = {f'mmpipe_order_{i}': by for i, (by, _) in enumerate(getattr(query, 'order_by_clause', None) or ())}
    return sorted({tuple(row[name] for name in names) for row in query.select(**names, **order).collect()})


def pages(rowids: Sequence[Rowid], size: int) -> Iterator[Sequence[Rowid]]:
    """Cut sorted rowids into pages of at most `size`, keeping the component rows of one base row together if they fit.

    >>> [list(page) for page in pages([(0, 0), (0, 1), (1, 0), (2, 0)], 3)]
    [[(0, 0), (0, 1), (1, 0)], [(2, 0)]]
    """
    start = 0
    while start < len(rowids):
        end = min(start + size, len(rowids))
        while start < end < len(rowids) and rowids[end][0] == rowids[end - 1][0] and rowids[start][0] != rowids[end][0]:
            end -= 1
        yield rowids[start:end]
        start = end


def failed_rows(table: Any, column: str, *, among: Sequence[int] | None = None) -> list[int]:
    """Base row ids of the rows in which a computed column's function raised; sorted, each once.

    Args:
        table: the table or view that declares the column.
        column: its name.
        among: base row ids to look at; all when None.
    """
    row_id = rowid_expressions(table)[0]
    failed = getattr(table, column).errortype != None  # noqa: E711 (Pixeltable overloads it)
    if among is not None:
        failed &= row_id.isin(list(among))
    return sorted({row['row_id'] for row in table.where(failed).select(row_id=row_id).collect()})


def rows_where(base: Any, tables: Sequence[Any], condition: Any) -> set[int]:
    """Base row ids of the rows that fulfil a condition; none for a tree whose columns it does not read.

    Args:
        base: a base table.
        tables: the views over it.
        condition: Pixeltable expression over the table or one of the views.
    """
    read = owners_of(condition)
    for table in (base, *tables):
        if read and read <= {entry[0] for entry in version_vector(table)}:
            return {rowid[0] for rowid in rowids_of(table.where(condition), table)}
    return set()
