"""Compute stale columns again, in chunks that a kill cannot take back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mmpipe.ledger import Book, keeping
from mmpipe.store import failed_cells, path_of, recompute_rows, start, tree_of, writer_lock

CHUNK_ROWS = 256
Progress = Callable[[str, int, int | None, str], None]


def backfill(base: Any, columns: Iterable[tuple[str, str]], *, progress: Progress | None = None) -> list[str]:
    """Make the rows of some columns that are not made as the code is now.

    Each chunk is a transaction of its own, and the ledger is kept every few seconds: what a kill leaves unrecorded is
    computed again. Columns that read a column are computed with it.

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
            for start_at in range(0, len(rows), CHUNK_ROWS):
                written = recompute_rows(book.tables[path], [column], rows[start_at : start_at + CHUNK_ROWS])
                book.record(written)
                book.keep()
                for name in written.columns:
                    owner, _, failed = name.partition('.')
                    failing.setdefault(owner, set()).add(failed)
                if progress is not None:
                    progress('apply', min(start_at + CHUNK_ROWS, len(rows)), len(rows), 'rows')
    tables = {path_of(each).rsplit('/', 1)[-1]: each for each in tree_of(base)}
    return [text for owner, names in failing.items() for text in failed_cells(tables[owner], sorted(names))]


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
