"""The change feed: which rows of a table or view were inserted, updated or deleted since a version vector.

Pixeltable keeps every row version: a row is live at version V iff v_min <= V < v_max, and both columns are indexed.
So a change is found by its version numbers at a cost of O(change), where comparing two selects costs O(table).
A view's output also changes when a base row does, without a new version of the view: the vector names the whole chain.

What comes out are candidates: recomputing a row to the same values makes it `updated`. Compare contents before writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects.postgresql import ARRAY

from mmpipe.errors import StoreError
from mmpipe.store.tables import path_of

Rowid = tuple[int, ...]
Vector = tuple[tuple[str, int, float], ...]
"""(table id, version, created_at) of a table and each of its bases, nearest first."""

LOOKUP_ROWS = 5000  # keys per IN list; Postgres plans lists of this size as an index scan


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What happened to a table or view between two version vectors.

    Args:
        inserted: rowids visible now and not then.
        updated: rowids visible at both, with a newer version of the row or of a base row; may hold unchanged ones.
        deleted: rowids visible then and not now.
        vector: the version vector of now.
    """

    inserted: tuple[Rowid, ...]
    updated: tuple[Rowid, ...]
    deleted: tuple[Rowid, ...]
    vector: Vector


def _chain(table: Any) -> list[Any]:
    """Table versions of a table and its bases, nearest first. Inside a transaction only."""
    return [handle.get() for handle in table._tbl_version_path.get_tbl_versions()]


def _read(table: Any) -> Any:
    from pixeltable.runtime import get_runtime

    return get_runtime().catalog.begin_xact(for_write=False, read_tvps=[table._tbl_version_path])


def version_vector(table: Any) -> Vector:
    """The version of a table and of each of its bases, read in one transaction.

    Args:
        table: a Pixeltable table or view.
    """
    with _read(table):
        return tuple((str(tv.id), tv.version, tv.created_at) for tv in _chain(table))


def rowid_width(table: Any) -> int:
    """How many numbers name a row: 1 for a table and its filter views, one more per iterator in the chain."""
    with _read(table):
        return len(_chain(table)[0].store_tbl.rowid_columns())


def changes_since(table: Any, since: Vector | None) -> Changes:
    """Rows inserted, updated and deleted since a version vector.

    Args:
        table: a table, filter view, component view, or filter view over a component view.
        since: an earlier `version_vector` of it; None for "before the first row".

    Returns:
        The changes, each kind sorted by rowid, and the vector they lead to.

    Raises:
        StoreError: the vector is of another table, or the table was reverted or made again since.
    """
    with _read(table) as connection:
        versions = _chain(table)
        stores = [tv.store_tbl for tv in versions]
        now: Vector = tuple((str(tv.id), tv.version, tv.created_at) for tv in versions)
        target, key = stores[0], stores[0].rowid_columns()

        def visible_now(newer: Any) -> Any:
            source = target.sa_tbl
            for base in stores[1:]:
                width = len(base.rowid_columns())  # a base's rowid is a prefix of its component view's
                same = [a == b for a, b in zip(key[:width], base.rowid_columns(), strict=True)]
                source = source.join(base.sa_tbl, sql.and_(*same))
            query = sql.select(*key).select_from(source)
            for store, version in zip(stores, now, strict=True):
                query = query.where(store.v_min_col <= version[1], store.v_max_col > version[1])
            return query if newer is None else query.where(newer)

        if since is None:
            rows = [tuple(row) for row in connection.execute(visible_now(None).order_by(*key))]
            return Changes(inserted=tuple(rows), updated=(), deleted=(), vector=now)
        _check_history(connection, table, since, now)
        upserts: set[Rowid] = set()
        for store, then in zip(stores, since, strict=True):  # a query each: an OR across the join defeats the indexes
            upserts |= {tuple(row) for row in connection.execute(visible_now(store.v_min_col > then[1]))}
        existed = _visible_at(connection, target, key, sorted(upserts), since[0][1])
        ended = sql.select(*key).where(
            target.v_max_col > since[0][1], target.v_max_col <= now[0][1], target.v_min_col <= since[0][1]
        )
        deleted = {tuple(row) for row in connection.execute(ended)} - upserts
        return Changes(
            inserted=tuple(sorted(upserts - existed)),
            updated=tuple(sorted(existed)),
            deleted=tuple(sorted(deleted)),
            vector=now,
        )


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """Versions of a table in which nothing but some computed columns of rows changed.

    Args:
        table: id of the table.
        first: the first version.
        last: the last.
        created: when the last was created: after a revert, its number stands for another version.
        columns: the columns, as 'table.column'.
    """

    table: str
    first: int
    last: int
    created: float
    columns: tuple[str, ...]


def changed_otherwise(
    table: Any, rowids: Sequence[Rowid], since: Vector, recomputed: Sequence[Recomputed]
) -> tuple[set[Rowid], set[str]]:
    """Which of the rows updated since a version vector changed in more than columns that were computed again.

    Args:
        table: as `changes_since` takes it.
        rowids: rows that it calls updated.
        since: the version vector.
        recomputed: what is known of versions since; those of a time before a revert are left out.

    Returns:
        The rows, and the columns that changed of all others, as 'table.column'.
    """
    from pixeltable.metadata.schema import TableVersion

    then = {entry[0]: entry[1] for entry in since}
    with _read(table) as connection:
        known = []
        for each in recomputed:
            query = sql.select(TableVersion.md).where(
                TableVersion.tbl_id == each.table, TableVersion.version == each.last
            )
            stored = connection.execute(query).scalar() if each.last > then.get(each.table, each.last) else None
            if stored is not None and stored['created_at'] == each.created:
                known.append(each)
        prefixes: set[Rowid] = set()
        for tv in _chain(table):
            store = tv.store_tbl
            newer = [store.v_min_col > then[str(tv.id)]]
            newer += [
                sql.not_(store.v_min_col.between(each.first, each.last)) for each in known if each.table == str(tv.id)
            ]
            # Of every version since, not of the live one alone: a change may lie under a row computed again later.
            prefixes |= {tuple(row) for row in connection.execute(sql.select(*store.rowid_columns()).where(*newer))}
    widths = {len(prefix) for prefix in prefixes}
    otherwise = {rowid for rowid in rowids if any(rowid[:width] in prefixes for width in widths)}
    return otherwise, {column for each in known for column in each.columns}


def values_since(table: Any, columns: Sequence[Any], rowids: Sequence[Rowid], since: Vector) -> list[list[Any]]:
    """Every value that stored columns of some rows have had since a version vector, those of deleted rows included.

    Args:
        table: a table or view.
        columns: references to stored columns of it or its bases.
        rowids: the rows.
        since: an earlier `version_vector` of it.

    Returns:
        Per column the different values, without null.
    """
    versions = {entry[0]: entry[1] for entry in since}
    firsts = sorted({rowid[0] for rowid in rowids})
    found: list[list[Any]] = []
    with _read(table) as connection:
        chain = {str(tv.id): tv for tv in _chain(table)}
        for column in columns:
            owner = str(column.col_md.qcolid.tbl_id)
            store, value = chain[owner].store_tbl, chain[owner].cols_by_name[column.col_md.name].sa_col
            seen: set[Any] = set()
            for start in range(0, len(firsts), LOOKUP_ROWS):
                part = firsts[start : start + LOOKUP_ROWS]
                query = sql.select(value).where(
                    store.rowid_columns()[0].in_(part), store.v_max_col > versions[owner], value.is_not(None)
                )
                seen |= {row[0] for row in connection.execute(query.distinct())}
            found.append(sorted(seen))
    return found


def _visible_at(connection: Any, store: Any, key: Any, rowids: Sequence[Rowid], version: int) -> set[Rowid]:
    found: set[Rowid] = set()
    for start in range(0, len(rowids), LOOKUP_ROWS):
        part = rowids[start : start + LOOKUP_ROWS]
        among = sql.tuple_(*key).in_(part) if len(key) > 1 else key[0].in_([rowid[0] for rowid in part])
        was = sql.select(*key).where(store.v_min_col <= version, store.v_max_col > version).where(among)
        found |= {tuple(row) for row in connection.execute(was)}
    return found


def _check_history(connection: Any, table: Any, since: Vector, now: Vector) -> None:
    """A revert reuses version numbers, and a table made again reuses its path: only ids and times tell."""
    from pixeltable.metadata.schema import TableVersion

    if [then[0] for then in since] != [present[0] for present in now]:
        raise StoreError(
            f"'{path_of(table)}' or one of its bases was dropped and made again since that version vector was taken. "
            f'Read it from the start (a snapshot: full=True).'
        )
    for (table_id, version, created_at), present in zip(since, now, strict=True):
        query = sql.select(TableVersion.md).where(TableVersion.tbl_id == table_id, TableVersion.version == version)
        stored = connection.execute(query).scalar()
        if version > present[1] or stored is None or stored['created_at'] != created_at:
            raise StoreError(
                f"'{path_of(table)}' or one of its bases was reverted behind version {version} since that version "
                f'vector was taken. Read it from the start (a snapshot: full=True).'
            )


def written_since(table: Any, since: Vector, ours: Sequence[range] = ()) -> tuple[set[int], Vector]:
    """Base row ids of rows with a newer version than a version vector, and the vector of now, read in one transaction.

    Args:
        table: a table or view.
        since: an earlier `version_vector` of it; only its first entry counts.
        ours: versions of the table to leave out.

    Raises:
        StoreError: the table was reverted or made again since.
    """
    with _read(table) as connection:
        versions = _chain(table)
        now: Vector = tuple((str(tv.id), tv.version, tv.created_at) for tv in versions)
        _check_history(connection, table, since[:1], now[:1])
        if now[0][1] == since[0][1]:
            return set(), now
        store = versions[0].store_tbl
        query = sql.select(store.rowid_columns()[0]).where(
            store.v_min_col > since[0][1], store.v_min_col <= now[0][1], store.v_max_col > now[0][1]
        )
        for span in ours:
            query = query.where(sql.not_(store.v_min_col.between(span[0], span[-1])))
        return {row[0] for row in connection.execute(query)}, now


def live_by_span(table: Any, bounds: Sequence[int]) -> list[int]:
    """How many live rows have a base row id in each part that sorted bounds cut the row ids into, in one query.

    Args:
        table: a table or view.
        bounds: ascending row ids; part 0 is below the first, part i from bound i - 1 on.
    """
    with _read(table) as connection:
        version = _chain(table)[0]
        store = version.store_tbl
        rowid = store.rowid_columns()[0]
        part = (
            sql.func.width_bucket(rowid, sql.literal(list(bounds), ARRAY(sql.BigInteger))) if bounds else sql.literal(0)
        )
        live = (store.v_min_col <= version.version, store.v_max_col > version.version)
        query = sql.select(part, sql.func.count()).where(*live).group_by(sql.literal_column('1'))
        counts = {row[0]: row[1] for row in connection.execute(query.select_from(store.sa_tbl))}
    return [counts.get(i, 0) for i in range(len(bounds) + 1)]


def live_rows(table: Any, first: int, last: int) -> list[int]:
    """Base row ids of the live rows of a table or view between two row ids, both included; sorted, each once."""
    with _read(table) as connection:
        version = _chain(table)[0]
        store = version.store_tbl
        rowid = store.rowid_columns()[0]
        query = sql.select(rowid).where(
            rowid.between(first, last), store.v_min_col <= version.version, store.v_max_col > version.version
        )
        return [row[0] for row in connection.execute(query.distinct().order_by(rowid))]
