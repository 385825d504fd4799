"""Compare rows with what is stored and write the difference; of rows refused together, find the one at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from mmpipe.errors import StoreError
from mmpipe.ledger import Book
from mmpipe.sources.fit import Key, Row, Target, absent
from mmpipe.sources.origin import ORIGIN, BadMedium, Entry, changed, inspect, recorded, renewed
from mmpipe.sources.record import Bad
from mmpipe.sources.unchanged import changed_rows, is_same
from mmpipe.store import Written, machine_failure, replace_rows, rows_with_keys, update_rows


@dataclass
class Outcome:
    """What an ingest has done so far."""

    inserted: int = 0
    replaced: int = 0
    updated: int = 0
    touched: int = 0
    unchanged: int = 0
    view_rows: int = 0
    failed_cells: int = 0
    failed_columns: set[str] = field(default_factory=set)
    bad: list[Bad] = field(default_factory=list)
    refused: int = 0
    reasons: set[str] = field(default_factory=set)
    book: Book | None = None

    def add(self, written: Written) -> None:
        """Count what one write did beside its own rows, and note in the ledger what it computed."""
        if self.book is not None:
            self.book.record(written)
        self.view_rows += written.view_rows
        self.failed_cells += written.failed_cells
        self.failed_columns |= set(written.columns)

    def refuse(self, refused: Sequence[Bad]) -> None:
        """Note rows that were readable, but could not be written."""
        self.bad += refused
        self.refused += len(refused)
        self.reasons |= {' '.join(part for part in (entry.column, entry.reason) if part) for entry in refused}

    @property
    def written(self) -> int:
        """Rows that were written so far."""
        return self.inserted + self.replaced + self.updated + self.touched

    @property
    def hopeless(self) -> str:
        """The reason that every row so far was refused for, and so will be the rest; '' while there is hope."""
        if self.written or self.unchanged or self.refused < 2:
            return ''
        if len(self.reasons) != 1 or 2 * self.refused < len(self.bad):
            return ''
        return next(iter(self.reasons))


def write(table: Any, rows: Sequence[Row], target: Target, pool: ThreadPoolExecutor, outcome: Outcome) -> None:
    """Bring one chunk of rows into a table.

    Args:
        table: Pixeltable table.
        rows: different keys each.
        target: what is known of the table.
        pool: threads that open files.
        outcome: counts and bad rows are added to it.

    Raises:
        StoreError: the disk, the memory or the database failed.
        MissingExtraError: a package that opens a file is not installed.
    """
    given, (rows, there) = len(rows), changed_rows(table, rows, target, pool)
    outcome.unchanged += given - len(rows)
    plain = [name for name in target.types if name not in target.media]
    stored = rows_with_keys(table, there, plain, files=list(target.media)) if there else {}

    def look(row: Row) -> Entry | Bad:
        try:
            return inspect(row.media, recorded(stored.get(row.key)), target.media, row.root, downloaded=row.downloaded)
        except BadMedium as error:
            return Bad(place=row.place, key=row.name, column=error.column, path=str(error.file), reason=str(error))

    fresh: list[tuple[Row, dict[str, Any]]] = []
    updates: list[tuple[Row, dict[str, Any]]] = []
    touches: list[tuple[Row, dict[str, Any]]] = []
    refused: list[Bad] = []
    replaced: set[Key] = set()
    for row, entry in zip(rows, pool.map(look, rows), strict=True):
        old = stored.get(row.key)
        needed = absent(row, target) if old is None else None
        if isinstance(entry, Bad):
            outcome.bad.append(entry)
        elif needed is not None:
            reason = 'is not given, and a new row needs it: add the column, or declare it as `| None`'
            refused.append(Bad(place=row.place, key=row.name, column=needed, reason=reason))
        elif old is None or changed(entry, recorded(old)):
            fresh.append((row, _whole(row, entry, old or {}, target)))
            replaced |= {row.key} if old is not None else set()
        else:
            values = {name: value for name, value in row.values.items() if not is_same(old[name], value)}
            record = renewed(entry, recorded(old))
            if record != recorded(old):
                values[ORIGIN] = {'source': target.source, **(old[ORIGIN] or {}), 'media': record}
            if values:
                part = touches if set(values) == {ORIGIN} else updates
                part.append((row, {**dict(zip(target.key, row.key, strict=True)), **values}))
            else:
                outcome.unchanged += 1

    def replace(part: Sequence[tuple[Row, dict[str, Any]]]) -> None:
        stale = [row.key for row, _ in part if row.key in replaced]
        outcome.add(replace_rows(table, [values for _, values in part], stale))
        outcome.replaced += len(stale)
        outcome.inserted += len(part) - len(stale)

    def update(part: Sequence[tuple[Row, dict[str, Any]]]) -> None:
        outcome.add(update_rows(table, [values for _, values in part]))
        outcome.updated += len(part)

    def touch(part: Sequence[tuple[Row, dict[str, Any]]]) -> None:
        outcome.add(update_rows(table, [values for _, values in part]))
        outcome.touched += len(part)

    refused += _halve(fresh, replace, target.path)
    for _, same in groupby(sorted(updates, key=lambda item: sorted(item[1])), key=lambda item: sorted(item[1])):
        refused += _halve(list(same), update, target.path)
    refused += _halve(touches, touch, target.path)
    outcome.refuse(refused)


def _whole(row: Row, entry: Entry, old: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The whole row for Pixeltable: columns the source does not mention keep what is stored."""
    kept = {name: value for name, value in old.items() if name not in row.media}
    files = {name: item['path'] for name, item in entry.items() if name in target.media}
    everything = {**dict.fromkeys(target.media), **kept, **row.values, **files}
    return {**everything, ORIGIN: {'source': target.source, 'place': row.place, 'media': entry}}


def _halve(
    rows: Sequence[tuple[Row, dict[str, Any]]],
    write_part: Callable[[Sequence[tuple[Row, dict[str, Any]]]], None],
    path: str,
) -> Iterator[Bad]:
    """Write rows together, or in halves when that is refused, down to the rows at fault."""
    if not rows:
        return
    try:
        write_part(rows)
    except Exception as error:
        failure = machine_failure(error)
        if failure:
            raise StoreError(
                f"'{path}': writing stopped at {rows[0][0].place} ({failure}). No row is at fault: free disk space or "
                f'memory, or check Postgres, then run the same again.'
            ) from error
        if len(rows) > 1:
            yield from _halve(rows[: len(rows) // 2], write_part, path)
            yield from _halve(rows[len(rows) // 2 :], write_part, path)
            return
        row = rows[0][0]
        reason = f'was refused by Pixeltable ({_what(error)}): correct the row or the function'
        yield Bad(place=row.place, key=row.name, reason=reason)


def _what(error: Exception) -> str:
    """One line that can be acted on: a UDF's own error, and the expression that it was raised in."""
    line = ' '.join(str(error).split('[SQL:')[0].split())
    cause = error.__cause__
    if cause is None or str(cause) in line or not str(cause):
        return f'{type(error).__name__}: {line:.300}'
    expression = (str(error).strip().splitlines() or [''])[-1].strip()
    return f'{type(cause).__name__}: {" ".join(str(cause).split("[SQL:")[0].split()):.200}, in {expression:.100}'
