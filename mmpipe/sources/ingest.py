"""Bring the rows of a source into a table: only what is new or changed, and nothing that is bad."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mmpipe.errors import BadInputError, SchemaError, SourceError, StoreError
from mmpipe.sources import media as media_files
from mmpipe.sources.quarantine import settle
from mmpipe.sources.readers import KEY_LENGTH
from mmpipe.sources.record import Bad, Record, Source
from mmpipe.sources.values import parse
from mmpipe.store import (
    Written,
    base_of,
    cell_errors,
    column_types,
    media_columns,
    path_of,
    primary_key,
    replace_rows,
    rows_with_keys,
    start,
    table_of,
    update_rows,
    views_of,
    writer_lock,
)

ORIGIN = 'origin'
Key = tuple[Any, ...]
Progress = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What an ingest did.

    Args:
        table: path of the table.
        inserted: new rows.
        replaced: rows with a changed file; deleted and inserted again in one transaction.
        updated: rows in which only other columns changed; nothing that depends on their files was computed.
        unchanged: rows of the source that were there already.
        view_rows: rows of views over the table that came with them.
        quarantined: rows of the source that are in quarantine now.
        quarantine_written: entries of the quarantine that were added, changed or removed.
        failed_cells: computed cells whose UDF raised; null, with the error kept beside them.
        errors: a few messages of such cells, each with its column.
        bad: the quarantined rows.
    """

    table: str
    inserted: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    view_rows: int = 0
    quarantined: int = 0
    quarantine_written: int = 0
    failed_cells: int = 0
    errors: tuple[str, ...] = ()
    bad: tuple[Bad, ...] = field(default=(), repr=False)

    @property
    def written(self) -> int:
        """Rows written anywhere: table, views and quarantine. 0 when nothing was new."""
        return self.inserted + self.replaced + self.updated + self.view_rows + self.quarantine_written

    def __str__(self) -> str:
        parts = [f'{self.inserted} new', f'{self.replaced} with changed files', f'{self.updated} with changed values']
        line = f'{self.table}: {", ".join(parts)}, {self.unchanged} unchanged, {self.quarantined} in quarantine'
        for bad in self.bad[:5]:
            what = f"{bad.column} '{bad.path}'" if bad.path else bad.column
            line += f'\n  {bad.place}: {" ".join(part for part in (what, bad.reason) if part)}'
        if len(self.bad) > 5:
            line += f'\n  ... and {len(self.bad) - 5} more: mm.quarantined({self.table!r})'
        return line + ''.join(f'\n  {error}' for error in self.errors)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A record whose values fit the table."""

    key: Key
    place: str
    values: dict[str, Any]
    media: dict[str, Path | None]
    root: Path


def ingest(
    table: Any, source: Source, *, chunk_rows: int = 256, threads: int | None = None, progress: Progress | None = None
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
        chunk_rows: rows per insert; what a crash can cost.
        threads: how many files are opened at once; the number of cores when None.
        progress: called as `progress('ingest', done, total, 'rows')`.

    Returns:
        Counts of what was done.

    Raises:
        SchemaError: no primary key, no `origin`, a view, or a class that is not bound.
        SourceError: the source names columns that the table lacks, or lacks one that it needs.
        BusyError: another process keeps writing the table.
        StoreError: Pixeltable refuses every row of a chunk for the same reason.
    """
    start()
    target = table_of(table)
    path = path_of(target)
    names = primary_key(target)
    types = column_types(target)
    if base_of(target) is not target:
        raise SchemaError(f"'{path}' is a view: rows go into its base table '{path_of(base_of(target))}'")
    if not names:
        raise SchemaError(f"'{path}' has no primary key, so a row cannot be found again. Declare one: "
                          f'key = pxt.Column(type=pxt.String, primary_key=True)')  # fmt: skip
    if ORIGIN not in types or not types[ORIGIN].is_json_type():
        raise SchemaError(f"'{path}' has no column to record its files in. Add to its class: origin: pxt.Json | None")
    if chunk_rows < 1:
        raise SourceError(f'chunk_rows is {chunk_rows}, and a chunk has at least one row')
    media = media_columns(target)
    total = source.total()
    counts = dict.fromkeys(('inserted', 'replaced', 'updated', 'unchanged', 'view_rows', 'failed_cells'), 0)
    bad: list[Bad] = []
    failed: set[str] = set()
    seen: dict[Key, str] = {}
    done = 0
    with writer_lock(f'table:{path}'), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for chunk in _chunks(source.records(key=names, media=media), chunk_rows):
            rows: list[_Row] = []
            for record in chunk:
                checked = record if isinstance(record, Bad) else _fit(record, names, types, media, path, seen)
                (bad if isinstance(checked, Bad) else rows).append(checked)  # type: ignore[arg-type]
            for written in _bring_in(target, rows, types, media, pool, bad, counts):
                counts['view_rows'] += written.view_rows
                counts['failed_cells'] += written.failed_cells
                failed |= set(written.columns)
            done += len(chunk)
            if progress is not None:
                progress('ingest', done, total, 'rows')
        quarantine_written = settle(target, source.name, bad)
    return IngestReport(
        table=path, **counts, quarantined=len(bad), quarantine_written=quarantine_written,
        errors=tuple(_messages(target, failed)), bad=tuple(bad),
    )  # fmt: skip


def _chunks(records: Iterator[Record | Bad], size: int) -> Iterator[list[Record | Bad]]:
    while chunk := list(islice(records, size)):
        yield chunk


def _fit(
    record: Record, names: list[str], types: Mapping[str, Any], media: Mapping[str, str], path: str, seen: dict[Key, str]
) -> _Row | Bad:
    """A record as a row of the table, or why it is none."""
    unknown = sorted((set(record.values) | set(record.media)) - set(types))
    if unknown:
        have = ', '.join(name for name in types if name != ORIGIN)
        raise SourceError(f"{record.place}: '{path}' has no column {', '.join(unknown)}; it has {have}. Drop or rename it there.")
    lacking = [name for name in names if record.values.get(name) in (None, '')]
    if lacking:
        return Bad(place=record.place, column=lacking[0], reason=f'has no key: fill the column {", ".join(lacking)}')
    values: dict[str, Any] = {}
    key_text = '/'.join(str(record.values[name]) for name in names)[:KEY_LENGTH]
    for name, value in record.values.items():
        try:
            values[name] = parse(value, types[name])
        except BadInputError as error:
            return Bad(place=record.place, key=key_text, column=name, reason=str(error))
    for name in names:
        if isinstance(values[name], str) and len(values[name]) > KEY_LENGTH:
            reason = f'is a key of {len(values[name])} characters, and only the first 256 are compared: shorten it'
            return Bad(place=record.place, key=key_text, column=name, reason=reason)
    key = tuple(values[name] for name in names)
    if key in seen:
        return Bad(place=record.place, key=key_text, reason=f'has the key of {seen[key]}: keys are unique, change one')
    seen[key] = record.place
    return _Row(key=key, place=record.place, values=values, media=dict(record.media), root=record.root)


def _bring_in(
    table: Any, rows: Sequence[_Row], types: Mapping[str, Any], media: Mapping[str, str],
    pool: ThreadPoolExecutor, bad: list[Bad], counts: dict[str, int],
) -> Iterator[Written]:  # fmt: skip
    """Compare one chunk with what is stored, and write the difference."""
    plain = [name for name in types if name not in media]
    stored = rows_with_keys(table, [row.key for row in rows], plain)
    fresh: list[tuple[_Row, dict[str, Any]]] = []
    stale: list[Key] = []
    updates: list[dict[str, Any]] = []
    for row, entry in zip(rows, pool.map(lambda r: _inspect(r, stored.get(r.key), media), rows), strict=True):
        old = stored.get(row.key)
        if isinstance(entry, Bad):
            bad.append(entry)
        elif old is None:
            fresh.append((row, _insertable(row, entry, {}, types, media)))
        elif {name: item['digest'] for name, item in entry.items()} != _digests(old) or _moved(entry, old):
            fresh.append((row, _insertable(row, entry, old, types, media)))
            stale.append(row.key)
        else:
            changed = {name: value for name, value in row.values.items() if old[name] != value}
            if changed:
                updates.append({**{n: row.values[n] for n in primary_key(table)}, **changed})
            else:
                counts['unchanged'] += 1
    replaced = set(stale)
    yield from _write(table, fresh, replaced, bad, counts)
    for _, same in groupby(sorted(updates, key=lambda u: sorted(u)), key=lambda u: sorted(u)):
        batch = list(same)
        counts['updated'] += len(batch)
        yield update_rows(table, batch)


def _inspect(row: _Row, old: Mapping[str, Any] | None, media: Mapping[str, str]) -> dict[str, dict[str, Any]] | Bad:
    """Path, digest and stamp of each of a row's files; opened unless they are the recorded ones."""
    known = ((old or {}).get(ORIGIN) or {}).get('media', {})
    found = {name: item for name, item in known.items() if name not in row.media}
    for name, file in row.media.items():
        if file is None:
            continue
        try:
            resolved = file.resolve()
            if not resolved.is_relative_to(row.root):
                raise BadInputError(f"lies outside '{row.root}': move it there, or give root=")
            if not resolved.exists():
                raise BadInputError('does not exist: add the file, or correct the path')
            now = media_files.stamp(resolved)
            if name in known and known[name]['path'] == str(resolved) and known[name]['stamp'] == now:
                found[name] = known[name]
                continue
            digest = media_files.digest_file(resolved)
            if known.get(name, {}).get('digest') != digest:
                media_files.check(resolved, media[name])
        except (BadInputError, OSError) as error:
            key = '/'.join(str(part) for part in row.key)
            return Bad(place=row.place, key=key, column=name, path=str(file), reason=str(error))
        found[name] = {'path': str(resolved), 'digest': digest, 'stamp': now}
    return found


def _digests(old: Mapping[str, Any]) -> dict[str, str]:
    return {name: item['digest'] for name, item in ((old.get(ORIGIN) or {}).get('media') or {}).items()}


def _moved(entry: Mapping[str, Mapping[str, Any]], old: Mapping[str, Any]) -> bool:
    """Whether Pixeltable refers to a file that is gone, while the same content lies elsewhere now."""
    known = ((old.get(ORIGIN) or {}).get('media')) or {}
    return any(item['path'] != known[name]['path'] and not Path(known[name]['path']).exists() for name, item in entry.items())


def _insertable(
    row: _Row, entry: Mapping[str, dict[str, Any]], old: Mapping[str, Any], types: Mapping[str, Any], media: Mapping[str, str]
) -> dict[str, Any]:
    """The whole row for Pixeltable: columns the source does not mention keep what is stored."""
    kept = {name: value for name, value in old.items() if name != ORIGIN}
    files = {name: entry[name]['path'] if name in entry else None for name in media}
    return {**kept, **row.values, **files, ORIGIN: {'place': row.place, 'media': dict(entry)}}


def _write(
    table: Any, fresh: Sequence[tuple[_Row, dict[str, Any]]], replaced: set[Key], bad: list[Bad], counts: dict[str, int]
) -> Iterator[Written]:
    """Write rows; when Pixeltable refuses them together, find the ones at fault by halving."""
    if not fresh:
        return
    refused: list[Bad] = []
    yield from _halve(table, fresh, replaced, refused, counts)
    if len(refused) == len(fresh) > 1 and len({entry.reason for entry in refused}) == 1:
        raise StoreError(f"no row of this chunk can be inserted: {refused[0].reason} First row: {refused[0].place}")
    bad += refused


def _halve(
    table: Any, fresh: Sequence[tuple[_Row, dict[str, Any]]], replaced: set[Key], refused: list[Bad], counts: dict[str, int]
) -> Iterator[Written]:
    stale = [row.key for row, _ in fresh if row.key in replaced]
    try:
        written = replace_rows(table, [values for _, values in fresh], stale)
    except Exception as error:  # UDFs, iterators and Pixeltable raise anything; the row at fault is found by halving
        if len(fresh) == 1:
            row = fresh[0][0]
            reason = f'Pixeltable refused the row ({type(error).__name__}: {_first_line(error)}): correct the row or the function'
            refused.append(Bad(place=row.place, key='/'.join(str(part) for part in row.key), reason=reason))
            return
        middle = len(fresh) // 2
        yield from _halve(table, fresh[:middle], replaced, refused, counts)
        yield from _halve(table, fresh[middle:], replaced, refused, counts)
        return
    counts['replaced'] += len(stale)
    counts['inserted'] += len(fresh) - len(stale)
    yield written


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [''])[0][:300]


def _messages(table: Any, columns: Iterable[str]) -> Iterator[str]:
    """A few messages of failed cells, for the tables that reported any."""
    if not set(columns):
        return
    for each in (table, *views_of(table)):
        for name, (count, messages) in cell_errors(each).items():
            yield f"{path_of(each)}.{name}: {count} cells failed, first: {messages[0]}"
