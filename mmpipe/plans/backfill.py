"""Compute stale columns again, in chunks that a kill cannot take back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mmpipe.ledger import Book, keeping
from mmpipe.store import failed_cells, path_of, recompute_rows, start, tree_of, writer_lock

FIRST_CHUNK, LARGEST_CHUNK = 32, 1024  # rows
SHORT_CHUNK_S = 1.0
Progress = Callable[[str, int, int | None, str], None]


def backfill(base: Any, columns: Iterable[tuple[str, str]], *, progress: Progress | None = None) -> list[str]:
    """Make the rows of some columns that are not made as the code is now.

    Each chunk is a transaction of its own, and the ledger is stored as they go. What a kill leaves unrecorded is made
    again: one chunk of slow work, or a second of cheap. Columns that read a column are computed with it.

    Args:
        base: a base table.
        columns: (path of table or view, column) to make.
        progress: called as `progress('apply', done, total, 'rows')`, per column.

    Returns:
        A message for each column with cells whose function raised.
    """
    wanted = set(columns)
    failing: dict[str, set[str]] = {}
    with writer_lock(f'table:{path_of(base)}'), keeping(base) as book:
        for path, column in [name for name in book.prints if name in wanted]:
            rows = book.rows_to_make(path, column)  # those that an earlier column took along are made already
            done = 0
            for chunk in chunks(rows):
                written = recompute_rows(book.tables[path], [column], chunk)
                book.record(written)
                book.keep()
                for name in written.columns:
                    owner, _, failed = name.partition('.')
                    failing.setdefault(owner, set()).add(failed)
                done += len(chunk)
                if progress is not None:
                    progress('apply', done, len(rows), 'rows')
    tables = {path_of(each).rsplit('/', 1)[-1]: each for each in tree_of(base)}
    return [text for owner, names in failing.items() for text in failed_cells(tables[owner], sorted(names))]


def chunks(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut rows into chunks: small ones while they are slow, since a kill takes one back.

    >>> [len(chunk) for chunk in chunks(range(100))]
    [32, 64, 4]
    """
    at, size = 0, FIRST_CHUNK
    while at < len(rows):
        started = time.monotonic()
        yield rows[at : at + size]
        at += size
        if time.monotonic() - started < SHORT_CHUNK_S:
            size = min(2 * size, LARGEST_CHUNK)


def mark_filled(bases: Iterable[str], columns: Iterable[tuple[str, str]], until: dict[str, int]) -> None:
    """Record that the statements of a schema change made columns for all rows there were.

    A plain Pixeltable write at the very moment of the change is not told apart from it.

    Args:
        bases: paths of the base tables that were changed.
        columns: (path, column) that were made, by the change or since they read one that was; '*' for all of a table.
        until: base table to the row ids it had given out before the change.
    """
    pxt = start()
    made = set(columns)
    for base in bases:
        book = Book(pxt.get_table(base))
        book.restart()
        mine = [name for name in book.prints if name in made or (name[0], '*') in made]
        book.filled(mine, until.get(base, 0))
        book.save()
