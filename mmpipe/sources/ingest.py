"""Bring the rows of a source into a table: only what is new or changed, and nothing that is bad."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mmpipe.cores import cores
from mmpipe.errors import ConfigError, SchemaError, StoreError
from mmpipe.ledger import keeping
from mmpipe.sources.fit import Fit, Row, Target
from mmpipe.sources.gone import Prune, first_keys, gone_rows, listed, prune_rows, whole_name
from mmpipe.sources.origin import ORIGIN
from mmpipe.sources.quarantine import settle
from mmpipe.sources.record import Bad, Record, Source
from mmpipe.sources.write import Outcome, write
from mmpipe.store import (
    base_of,
    column_types,
    computed_columns,
    failed_cells,
    media_columns,
    path_of,
    primary_key,
    start,
    table_of,
    told_plainly,
    views_of,
    writer_lock,
)

Progress = Callable[[str, int, int | None, str], None]

FIRST_CHUNK, LARGEST_CHUNK = 32, 1024  # rows
SHORT_CHUNK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What an ingest did.

    Args:
        table: path of the table.
        inserted: new rows.
        replaced: rows with a changed file; deleted and inserted again in one transaction.
        updated: rows in which only other columns changed; nothing that depends on their files was computed.
        touched: rows whose files have another time and the same content; only the record of the files was written.
        unchanged: rows of the source that were there already.
        view_rows: rows of views over the table that came with them.
        quarantined: rows of the source that are in quarantine now.
        quarantine_written: entries of the quarantine that were added, changed or removed.
        gone: rows that an earlier ingest of this source brought in, and that it no longer has.
        removed: those of them that were deleted, since `prune` asked for it.
        gone_keys: keys of the first few.
        failed_cells: computed cells whose UDF raised; null, with the error kept beside them.
        errors: a few messages of such cells, each with its column.
        bad: the quarantined rows.
    """

    table: str
    inserted: int = 0
    replaced: int = 0
    updated: int = 0
    touched: int = 0
    unchanged: int = 0
    view_rows: int = 0
    quarantined: int = 0
    quarantine_written: int = 0
    gone: int = 0
    removed: int = 0
    gone_keys: tuple[str, ...] = ()
    failed_cells: int = 0
    errors: tuple[str, ...] = ()
    bad: tuple[Bad, ...] = field(default=(), repr=False)

    @property
    def written(self) -> int:
        """Rows written or deleted anywhere: table, views and quarantine. 0 when nothing was new."""
        changed = self.inserted + self.replaced + self.updated + self.touched + self.removed
        return changed + self.view_rows + self.quarantine_written

    def __str__(self) -> str:
        parts = [f'{self.inserted} new', f'{self.replaced} with changed files', f'{self.updated} with changed values']
        parts += [f'{self.touched} only touched'] if self.touched else []
        parts += [f'{self.unchanged} unchanged', f'{self.quarantined} in quarantine']
        parts += [f'{self.removed} removed'] if self.removed else []
        line = f'{self.table}: {", ".join(parts)}'
        if not self.inserted + self.replaced + self.updated + self.touched + self.unchanged + self.quarantined:
            line += '; the source has no rows'
        if self.gone > self.removed:
            which = listed(self.gone_keys, self.gone)
            line += f'\n  {self.gone} rows are gone from the source ({which}): prune=True (--prune) removes them'
        for bad in self.bad[:5]:
            what = f"{bad.column} '{bad.path}'" if bad.path else bad.column
            row = f", row '{bad.key}'" if bad.key and bad.key not in bad.place else ''
            line += f'\n  {bad.place}{row}: {" ".join(part for part in (what, bad.reason) if part)}'
        if len(self.bad) > 5:
            line += f'\n  ... and {len(self.bad) - 5} more: mm.quarantined({self.table!r})'
        return line + ''.join(f'\n  {error}' for error in self.errors)


@told_plainly()
def ingest(
    table: Any,
    source: Source,
    *,
    chunk_rows: int | None = None,
    threads: int | None = None,
    prune: Prune = False,
    wait_s: float = 60.0,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring a table up to date with a source.

    Rows are found by primary key. A row that is there with the same values and the same file contents costs one look-up
    and a `stat` of its files; a row in which a value changed is updated; one with a changed file is replaced. What
    cannot be read, or does not fit its column, goes into quarantine with its place and the reason, and what is stored
    under its key stays. Running it again after a crash, or after mending files, does what is left.

    Args:
        table: bound table class, `pxt.Table` or path. Its class declares a primary key and `origin: pxt.Json | None`,
            where each row's files are recorded with path and digest, in the same transaction as the row.
        source: `mm.sources.rows(...)`, `mm.sources.files(...)` or your own `Source`.
        chunk_rows: rows per insert; what a crash can cost. When None, it starts at 32 and doubles up to 1024 as long as
            a chunk takes less than a second.
        threads: how many files are opened at once; the number of cores when None.
        prune: delete the rows, with their rows in views, that an earlier ingest of this source brought in and that it
            no longer has; a snapshot then masks them. Refused when it would be more than half of those rows, as of a
            source that is empty for once, or when a bad row may be one of them: 'all' removes them even then.
        wait_s: how long to wait for another writer of the table, in seconds.
        progress: called as `progress('ingest', done, total, 'rows')`.

    Returns:
        Counts of what was done.

    Raises:
        SchemaError: no primary key, no `origin`, a view, or a class that is not bound.
        ConfigError: `chunk_rows` is below 1.
        SourceError: the source cannot be read, or its first row has a column that the table lacks (a later row of JSON
            lines goes into quarantine); or `prune` is refused, when all else is done.
        BusyError: another process writes the table, for longer than `wait_s`.
        MissingExtraError: a package that opens a file is not installed.
        StoreError: every row so far is refused for the same reason, such as a missing required column (they are in
            quarantine then); or the disk, the memory or Postgres failed.

    >>> report = mm.ingest(Products, mm.sources.rows('products.csv'))  # doctest: +SKIP
    >>> report.inserted, report.quarantined  # doctest: +SKIP
    (2, 1)
    >>> mm.ingest(Products, mm.sources.rows('products.csv')).written  # doctest: +SKIP
    0
    """
    if not hasattr(source, 'records'):
        raise ConfigError(
            f'{source!r:.80} is no source: mm.sources.rows(...) reads a manifest, mm.sources.files(...) a folder'
        )
    start()
    target = table_of(table)
    path = path_of(target)
    if base_of(target) is not target:
        raise SchemaError(f"'{path}' is a view: rows go into its base table '{path_of(base_of(target))}'")
    aim = Target(
        path=path, key=primary_key(target), types=column_types(target), media=media_columns(target),
        computed=frozenset(computed_columns(target)), source=whole_name(source),
    )  # fmt: skip
    if not aim.key:
        raise SchemaError(f"'{path}' has no primary key, so a row cannot be found again. Declare one: "
                          f'key = pxt.Column(type=pxt.String, primary_key=True)')  # fmt: skip
    if ORIGIN not in aim.types or not aim.types[ORIGIN].is_json_type():
        raise SchemaError(f"'{path}' has no column to record its files in. Add to its class: origin: pxt.Json | None")
    if chunk_rows is not None and chunk_rows < 1:
        raise ConfigError(f'chunk_rows={chunk_rows}: a chunk has at least one row; leave it out for a size that adapts')
    total = source.total()
    if progress is not None:
        progress('ingest', 0, total, 'rows')
    fit = Fit(aim)
    done = new = 0
    spent = 0.0
    with (
        writer_lock(f'table:{path}', wait_s=wait_s),
        ThreadPoolExecutor(threads or cores()) as pool,
        keeping(target) as book,
    ):
        outcome = Outcome(book=book)
        for chunk in _chunks(source.records(key=aim.key, media=aim.media), chunk_rows):
            rows: list[Row] = []
            for record in chunk:
                row = record if isinstance(record, Bad) else fit(record)
                if isinstance(row, Bad):
                    outcome.bad.append(row)
                else:
                    rows.append(row)
            before, written, started = outcome.inserted, outcome.written, time.monotonic()
            write(target, rows, aim, pool, outcome)
            new, spent = new + outcome.inserted - before, spent + time.monotonic() - started
            if outcome.hopeless:
                settle(target, source.name, outcome.bad, whole=False)
                raise StoreError(
                    f"'{path}': none of the {outcome.refused} rows from {outcome.bad[0].place} on can be written, all "
                    f'for one reason: {outcome.hopeless}. They are in quarantine; the rest was not tried.'
                )
            if outcome.written > written:  # a row that is not recorded when the process dies is made again
                book.keep()
            done += len(chunk)
            if progress is not None:
                progress('ingest', done, total, 'rows')
        book.took(path, '', new, spent)
        quarantine_written = settle(target, source.name, outcome.bad)
        gone, known = gone_rows(target, source, fit.seen, outcome.bad)
        before = known - outcome.inserted
        removed = prune_rows(target, aim, source, gone, before, outcome.bad, prune) if prune else 0
    failing = (target, *views_of(target)) if outcome.failed_cells else ()
    errors = (message for each in failing for message in failed_cells(each))
    return IngestReport(
        table=path, inserted=outcome.inserted, replaced=outcome.replaced, updated=outcome.updated,
        touched=outcome.touched, unchanged=outcome.unchanged, view_rows=outcome.view_rows,
        failed_cells=outcome.failed_cells,
        quarantined=len(outcome.bad), quarantine_written=quarantine_written,
        gone=len(gone), removed=removed, gone_keys=first_keys(gone), errors=tuple(errors), bad=tuple(outcome.bad),
    )  # fmt: skip


def _chunks(records: Iterator[Record | Bad], size: int | None) -> Iterator[list[Record | Bad]]:
    """Lists of records; without a size, small ones while rows are slow, since a commit costs about 20 ms."""
    rows = FIRST_CHUNK if size is None else size
    while chunk := list(islice(records, rows)):
        started = time.monotonic()
        yield chunk
        if size is None and time.monotonic() - started < SHORT_CHUNK_S:
            rows = min(2 * rows, LARGEST_CHUNK)
