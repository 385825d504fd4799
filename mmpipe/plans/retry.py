"""Compute cells again whose function raised: after the function, its weights or the file has been mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmpipe.ledger import keeping
from mmpipe.plans.backfill import Progress, chunks
from mmpipe.store import (
    base_of,
    cell_errors,
    failed_cells,
    failed_rows,
    path_of,
    recompute_rows,
    start,
    tables_in,
    told_plainly,
    writer_lock,
)


@dataclass(frozen=True, kw_only=True)
class RetryReport:
    """What a retry did.

    Args:
        tried: 'table.column' to the cells that were computed again, those of columns that read them not counted.
        failed: a message for each column that has failed cells left.
    """

    tried: dict[str, int] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        tried = ', '.join(f'{name} {cells}' for name, cells in self.tried.items()) or 'no cell has failed'
        return '\n'.join([f'computed again: {tried}' if self.tried else tried, *self.failed])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {'tried': dict(self.tried), 'failed': list(self.failed)}


@told_plainly()
def retry(directory: str, *, progress: Progress | None = None) -> RetryReport:
    """Compute the cells of a catalog directory again whose function raised, and the columns that read them.

    Args:
        directory: catalog directory of a pipeline.
        progress: called as `progress('retry', done, total, 'rows')`, per column.

    Returns:
        How many cells were tried, and what has failed again.

    Raises:
        BusyError: another process keeps writing one of the tables.

    >>> print(mm.retry('shop'))  # doctest: +SKIP
    no cell has failed
    """
    start()
    tried: dict[str, int] = {}
    tables = tables_in(directory)
    for base in [table for table in tables if base_of(table) is table]:
        mine = [table for table in tables if path_of(base_of(table)) == path_of(base)]
        if not any(cell_errors(table, limit=1) for table in mine):
            continue
        with writer_lock(f'table:{path_of(base)}'), keeping(base) as book:
            for table in mine:
                for column in cell_errors(table, limit=1):
                    rows = failed_rows(table, column)  # those that an earlier column mended are not among them
                    done = 0
                    for chunk in chunks(rows):
                        book.record(recompute_rows(table, [column], chunk))
                        book.keep()
                        done += len(chunk)
                        if progress is not None:
                            progress('retry', done, len(rows), 'rows')
                    if rows:
                        tried[f'{path_of(table)}.{column}'] = len(rows)
    return RetryReport(tried=tried, failed=tuple(text for table in tables for text in failed_cells(table)))
