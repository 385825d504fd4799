"""Compute the rows of columns that are not made as the code is now, in chunks that a kill cannot take back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import ConfigError, FailureBudgetError
from mmpipe.ledger import Book, keeping
from mmpipe.store import (
    failed_cells,
    failed_rows,
    path_of,
    recompute_rows,
    rows_where,
    start,
    tree_of,
    views_of,
    writer_lock,
)

FIRST_CHUNK, LARGEST_CHUNK = 32, 1024  # rows
SHORT_CHUNK_S = 1.0
BUDGET_FROM = 32  # cells of a column that are tried before a share of failures stops it
Progress = Callable[[str, int, int | None, str], None]
Before = Callable[[Book, Sequence[tuple[str, str]], set[int] | None], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which rows a backfill makes, and when it gives up.

    Args:
        where: Pixeltable expression over a table or view; rows that fulfil it, and none of other tables.
        limit: rows of each table at most, the oldest first.
        max_failed: cells of a column that may fail: how many, or, below 1, which share of those tried.

    Raises:
        ConfigError: a number that is not possible.

    >>> Part(limit=10).whole, Part().whole
    (False, True)
    """

    where: Any = None
    limit: int | None = None
    max_failed: float = 0.5

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f'limit={self.limit}: at least one row')
        if self.max_failed < 0:
            raise ConfigError(f'max_failed={self.max_failed}: a number of cells, or a share of them below 1')

    @property
    def whole(self) -> bool:
        """Whether it is all rows."""
        return self.where is None and self.limit is None

    def rows(self, book: Book, columns: Sequence[tuple[str, str]]) -> set[int]:
        """Base row ids of the part."""
        mine = {row for path, column in columns for row in book.rows_to_make(path, column)}
        if self.where is not None:
            mine &= rows_where(book.base, views_of(book.base), self.where)
        return mine if self.limit is None else set(sorted(mine)[: self.limit])

    def spent(self, failed: int, tried: int) -> bool:
        """Whether more cells failed than may."""
        if self.max_failed < 1:
            return tried >= BUDGET_FROM and failed > self.max_failed * tried
        return failed > self.max_failed


def backfill(
    base: Any,
    columns: Iterable[tuple[str, str]],
    *,
    part: Part | None = None,
    progress: Progress | None = None,
    before: Before | None = None,
) -> list[str]:
    """Make the rows of some columns that are not made as the code is now.

    Each chunk is a transaction of its own, and the ledger is stored behind each. What a kill leaves unrecorded is made
    again: the rows of one chunk at most. Columns that read a column are computed with it.

    Args:
        base: a base table.
        columns: (path of table or view, column) to make.
        part: which of their rows; all when None.
        progress: called as `progress('apply', done, total, 'rows')`, per column.
        before: called with the book, the columns in order, and the base row ids of the part, None for all, before
            anything is computed: what fills the result cache.

    Returns:
        A message for each column with cells whose function raised.

    Raises:
        FailureBudgetError: too many cells of a column failed; what was made stays.
    """
    part = part or Part()
    failing: dict[str, set[str]] = {}
    with writer_lock(f'table:{path_of(base)}'), keeping(base) as book:
        wanted = set(columns)
        names = [name for name in book.prints if name in wanted]  # inputs come before what reads them
        among = None if part.whole else part.rows(book, names)
        if before is not None:
            before(book, names, among)
        for path, column in names:
            rows = book.rows_to_make(path, column)  # those that an earlier column took along are made already
            rows = rows if among is None else [row for row in rows if row in among]
            done = failed = 0
            started = time.monotonic()
            for chunk in chunks(rows):
                written = recompute_rows(book.tables[path], [column], chunk)
                book.record(written)
                book.keep()
                done += len(chunk)
                for name in written.columns:
                    owner, _, other = name.partition('.')
                    failing.setdefault(owner, set()).add(other)
                if column in failing.get(path.rsplit('/', 1)[-1], ()):
                    failed += len(failed_rows(book.tables[path], column, among=chunk))
                if part.spent(failed, done):
                    raise FailureBudgetError(_stopped(book.tables[path], column, failed, done, len(rows)))
                if progress is not None:
                    progress('apply', done, len(rows), 'rows')
            book.took(path, column, done, time.monotonic() - started)
    tables = {path_of(each).rsplit('/', 1)[-1]: each for each in tree_of(base)}
    return [text for owner, names in failing.items() for text in failed_cells(tables[owner], sorted(names))]


def _stopped(table: Any, column: str, failed: int, done: int, total: int) -> str:
    (reason,) = failed_cells(table, [column])
    return (
        f'{reason.partition(". Correct it")[0]}. Stopped there, since {failed:,} of {done:,} cells tried had failed, '
        f'with {total - done:,} to go. What was made stays. Correct the function, then apply and `mm.retry`; or raise '
        f'max_failed.'
    )


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
        columns: (path, column) that were made; '*' for all of a table.
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
