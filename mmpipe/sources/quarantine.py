"""The quarantine: a Pixeltable table with a row for everything an ingest could not take, until it can."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mmpipe.sources.record import Bad
from mmpipe.store import delete_rows, path_of, replace_rows, start, table_of, told_plainly

DIRECTORY = 'mmpipe'
TABLE = f'{DIRECTORY}/quarantine'
COLUMNS = ('table_path', 'source', 'place', 'row_key', 'column_name', 'path', 'reason')


def _table(*, create: bool) -> Any:
    pxt = start()
    table = pxt.get_table(TABLE, if_not_exists='ignore')
    if table is None and create:
        pxt.create_dir(DIRECTORY, if_exists='ignore')
        schema = {'id': {'type': pxt.String, 'primary_key': True}, **dict.fromkeys(COLUMNS, pxt.String)}
        table = pxt.create_table(TABLE, schema, if_exists='ignore')
    return table


@told_plainly()
def quarantined(table: Any = None) -> list[dict[str, str]]:
    """What is in quarantine.

    Args:
        table: table class, table or path to look at; all tables when None.

    Returns:
        One dict per entry: table_path, source, place (file and line), row_key, column_name, path, reason.

    Raises:
        SchemaError: there is no such table.

    >>> [(row['row_key'], row['column_name'], row['reason']) for row in mm.quarantined(Products)]  # doctest: +SKIP
    [('pot', 'photo', 'does not exist: add the file, or correct the path')]
    """
    store = _table(create=False)
    if store is None:
        return []
    rows = store if table is None else store.where(store.table_path == path_of(table_of(table)))
    found = rows.select(**{name: getattr(store, name) for name in COLUMNS}).collect()
    return sorted((dict(row) for row in found), key=lambda row: (row['table_path'], row['place'], row['column_name']))


def _escaped(text: str) -> str:
    """Text as Postgres takes it: a file name may hold bytes that are no UTF-8, a row anything."""
    return text.encode('utf-8', 'backslashreplace').decode().replace('\x00', '\\x00')


def settle(table: Any, source: str, bad: Sequence[Bad], *, whole: bool = True) -> int:
    """Make the quarantine of one source exactly `bad`: new entries go in, mended ones go out.

    Args:
        table: the table that was ingested into.
        source: name of the source.
        bad: its bad rows.
        whole: whether the source was read to its end; if not, nothing goes out.

    Returns:
        Number of entries written or removed; 0 when nothing changed.
    """
    path = path_of(table)
    wanted = {}
    source = _escaped(source)
    for entry in bad:
        parts = (entry.place, entry.key, entry.column, entry.path, entry.reason)
        values = (path, source, *(_escaped(part) for part in parts))
        identity = hashlib.blake2b('\x00'.join(values[:5]).encode(), digest_size=16).hexdigest()
        wanted[identity] = {'id': identity, **dict(zip(COLUMNS, values, strict=True))}
    store = _table(create=bool(wanted))
    if store is None:
        return 0
    mine = (store.table_path == path) & (store.source == source)
    stored = {row['id']: row['reason'] for row in store.where(mine).select(id=store.id, reason=store.reason).collect()}
    gone = [(identity,) for identity in stored if whole and identity not in wanted]
    delete_rows(store, gone)
    fresh = [row for identity, row in wanted.items() if stored.get(identity) != row['reason']]
    if fresh:
        replace_rows(store, fresh, [(row['id'],) for row in fresh if row['id'] in stored])
    return len(gone) + len(fresh)
