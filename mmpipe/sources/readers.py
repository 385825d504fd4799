"""Sources of records: a manifest with a row per line, or a folder with a row per file."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpipe.errors import SourceError
from mmpipe.sources.record import Bad, Record

KEY_LENGTH = 255  # Pixeltable keeps a primary key unique over its first 256 characters
MANIFESTS = ('.csv', '.jsonl', '.ndjson', '.parquet')


def rows(manifest: str | Path, *, root: str | Path | None = None) -> Rows:
    """Rows of a CSV, JSON-lines or Parquet file; its columns are columns of the table, media columns hold paths.

    Args:
        manifest: the file; its ending tells the format. Empty CSV fields are null.
        root: directory the paths are relative to, and that they may not leave; the manifest's own when None.

    Returns:
        A `Source`; nothing is read yet.

    Raises:
        SourceError: the file is missing, or of another format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, 'items.csv')
    ...     _ = manifest.write_text('key,photo,price\\nmug,mug.jpg,4.5\\n')
    ...     record, = rows(manifest).records(key=['key'], media={'photo': 'image'})
    ...     record.values, record.media['photo'].name
    ({'key': 'mug', 'price': '4.5'}, 'mug.jpg')
    >>> rows('nowhere.csv')
    Traceback (most recent call last):
    ...
    mmpipe.errors.SourceError: there is no file 'nowhere.csv'. Give the path of a CSV, JSON-lines or Parquet file.
    """
    path = Path(manifest)
    if not path.is_file():
        raise SourceError(f"there is no file '{manifest}'. Give the path of a CSV, JSON-lines or Parquet file.")
    if path.suffix.lower() not in MANIFESTS:
        raise SourceError(f"'{manifest}' ends in '{path.suffix}'; a manifest ends in {', '.join(MANIFESTS)}")
    return Rows(path=path.resolve(), root=Path(root or path.parent).resolve())


def files(
    pattern: str | Path,
    *,
    column: str | None = None,
    metadata: str | Path | None = None,
    on: str = 'file',
    values: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Files:
    """One row per file of a folder; the key is the file's path below it.

    Args:
        pattern: a folder (all files below it) or a glob such as 'photos/**/*.jpg'.
        column: the media column the file goes into; may be left out when the table has one media column.
        metadata: CSV, JSON-lines or Parquet file with further columns, one row per file.
        on: the metadata column that holds the file's path below the folder, or just its name. Other media columns of
            the metadata hold paths below the folder too.
        values: function from the file's path below the folder to further columns, such as its parent's name.

    Returns:
        A `Source`; nothing is read yet. A path longer than 255 characters is keyed by its end behind a digest of the
        whole, since Pixeltable compares only the first 256 characters of a key.

    Raises:
        SourceError: no such folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, 'cats').mkdir()
    ...     Path(folder, 'cats', 'tom.jpg').touch()
    ...     source = files(f'{folder}/**/*.jpg', values=lambda path: {'kind': path.parent.name})
    ...     [record.values for record in source.records(key=['key'], media={'photo': 'image'})]
    [{'kind': 'cats', 'key': 'cats/tom.jpg'}]
    """
    text = str(pattern)
    # A folder may be called 'photos [1]': only what is no folder of that name is a pattern.
    parts = Path(text).parts
    magic = next(
        (i for i, part in enumerate(parts) if glob.has_magic(part) and not Path(*parts[: i + 1]).is_dir()), None
    )
    root = Path(text) if magic is None else Path(*parts[:magic])
    if not root.is_dir():
        raise SourceError(f"there is no folder '{root}'. Give a folder, or a glob such as 'photos/**/*.jpg'.")
    return Files(
        root=root.resolve(),
        pattern='**/*' if magic is None else str(Path(*parts[magic:])),
        column=column,
        metadata=None if metadata is None else rows(metadata),
        on=on,
        values=values,
    )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Source made by `rows`."""

    path: Path
    root: Path

    @property
    def name(self) -> str:
        """Path of the manifest."""
        return str(self.path)

    def total(self) -> int | None:
        """Rows of the file, as far as that is cheap to know."""
        if self.path.suffix.lower() == '.parquet':
            return self._parquet_file().metadata.num_rows
        with self.path.open('rb') as file:
            lines = sum(1 for _ in file)
        return max(lines - 1, 0) if self.path.suffix.lower() == '.csv' else lines

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """The rows; see `Source.records`."""
        for place, row in self.raw():
            yield row if isinstance(row, Bad) else _record(place, row, key, media, root=self.root, text=self.is_text)

    @property
    def is_text(self) -> bool:
        """Whether every value is text."""
        return self.path.suffix.lower() == '.csv'

    def raw(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        """(place, row) pairs, a `Bad` in place of a row that cannot be read."""
        kind = self.path.suffix.lower()
        return self._csv() if kind == '.csv' else self._parquet() if kind == '.parquet' else self._json_lines()

    def _csv(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        # Bad bytes become lone surrogates, so that one bad row does not stop the file.
        with self.path.open(encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
            reader = csv.reader(file)
            try:
                header = next(reader, None)
            except csv.Error as error:
                raise SourceError(f"'{self.path}' is not CSV ({error}); its first line names the columns") from error
            if any(_has_surrogates(name) for name in header or []):
                raise SourceError(f"the first line of '{self.path}' is not UTF-8: save the file as UTF-8")
            if not header:
                raise SourceError(f"'{self.path}' is empty; its first line names the columns")
            if len(set(header)) != len(header) or not all(header):
                raise SourceError(
                    f"'{self.path}' names a column twice, or leaves one without a name: {', '.join(header)}"
                )
            while True:
                line = reader.line_num + 1
                place = f'{self.path} line {line}'
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    yield place, Bad(place=place, reason=f'is not CSV ({error}): correct the line')
                    continue
                if fields is None:
                    return
                if not fields:
                    continue
                if len(fields) != len(header):
                    start = _clean(fields[0])
                    reason = f'has {len(fields)} fields, the header has {len(header)}: correct the line ({start!r}...)'
                    if reader.line_num > line:
                        reason += f'; it runs to line {reader.line_num}: is a quote not closed?'
                    yield place, Bad(place=place, reason=reason)
                    continue
                broken = [name for name, value in zip(header, fields, strict=True) if _has_surrogates(value)]
                if broken:
                    reason = f'is not UTF-8: save the file as UTF-8 (the line starts with {_clean(fields[0])!r})'
                    yield place, Bad(place=place, column=broken[0], reason=reason)
                    continue
                yield place, {n: (v if v != '' else None) for n, v in zip(header, fields, strict=True)}

    def _json_lines(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        with self.path.open('rb') as file:
            for number, line in enumerate(file, start=1):
                place = f'{self.path} line {number}'
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
                    if not isinstance(row, dict):
                        raise ValueError('not an object')
                except UnicodeDecodeError:
                    yield place, Bad(place=place, reason='is not UTF-8: save the file as UTF-8')
                except ValueError as error:
                    yield place, Bad(place=place, reason=f'is not a JSON object ({error}): correct the line')
                else:
                    yield place, row

    def _parquet(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        number = 0
        try:
            for batch in self._parquet_file().iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f'{self.path} row {number}', row
        except pa.ArrowException as error:
            raise SourceError(
                f"'{self.path}' cannot be read behind row {number} ({error}): write the file again"
            ) from error

    def _parquet_file(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowException as error:
            raise SourceError(f"'{self.path}' is not a Parquet file ({error}): write the file again") from error


@dataclass(frozen=True, kw_only=True)
class Files:
    """Source made by `files`."""

    root: Path
    pattern: str
    column: str | None
    metadata: Rows | None
    on: str
    values: Callable[[Path], Mapping[str, Any]] | None

    @property
    def name(self) -> str:
        """Folder and pattern."""
        return str(self.root / self.pattern)

    def _paths(self) -> list[Path]:
        found = (Path(p) for p in glob.iglob(self.pattern, root_dir=self.root, recursive=True))
        own = None if self.metadata is None else self.metadata.path
        # Links that lead nowhere stay in, to be reported; a link to a folder is no file.
        files = (
            p
            for p in found
            if (self.root / p).is_file() or ((self.root / p).is_symlink() and not (self.root / p).is_dir())
        )
        return sorted(p for p in files if self.root / p != own)

    def total(self) -> int | None:
        """Number of files."""
        return len(self._paths())

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """A record per file; see `Source.records`."""
        column = self.column
        if column is None:
            if len(media) != 1:
                raise SourceError(
                    f'the table has {len(media)} media columns ({", ".join(media)}): files(..., column=) says which'
                )
            column = next(iter(media))
        if column not in media:
            raise SourceError(
                f"files(..., column='{column}'): the table's media columns are {', '.join(media) or 'none'}"
            )
        if len(key) != 1:
            raise SourceError(f'files() makes a key of one column, the table has {len(key)}: use mm.sources.rows()')
        rows: dict[str, tuple[str, dict[str, Any]]] = {}
        yield from self._metadata_rows(rows)
        paths = self._paths()
        names = Counter(path.name for path in paths)
        used: set[str] = set()
        for path in paths:
            name = path.as_posix()
            found = next((n for n in (os.path.normpath(name), path.name) if n in rows), None)
            values: dict[str, Any] = {}
            if found is not None:
                used.add(found)
                place, row = rows[found]
                if found != os.path.normpath(name) and names[found] > 1:
                    reason = f'shares its name with another file, and {place} gives no folder: write the path there'
                    yield Bad(place=name, column=self.on, path=str(self.root / path), reason=reason)
                    continue
                values = {k: v for k, v in row.items() if k != self.on or k in key}
            if self.values is not None:
                values.update(self.values(path))
            values.setdefault(key[0], short_key(name))
            values.pop(column, None)
            text = self.metadata is not None and self.metadata.is_text
            record = _record(name, values, key, media, root=self.root, text=text)
            if isinstance(record, Record):
                record = replace(record, media={**record.media, column: self.root / path})
            yield record
        for name in sorted(rows.keys() - used):
            reason = f"names a file that is not in '{self.root}': add it, or drop the row"
            yield Bad(place=rows[name][0], column=self.on, path=name, reason=reason)

    def _metadata_rows(self, rows: dict[str, tuple[str, dict[str, Any]]]) -> Iterator[Bad]:
        """Fill in place and row by file; yield the rows that cannot be used."""
        for place, row in () if self.metadata is None else self.metadata.raw():
            if isinstance(row, Bad):
                yield row
                continue
            if self.on not in row:
                raise SourceError(
                    f"{place} has no column '{self.on}' that names the file: say which with files(..., on=)"
                )
            file = os.path.normpath(str(row[self.on] or ''))
            if file == '.':
                yield Bad(place=place, column=self.on, reason='names no file: fill it, or drop the row')
            elif file in rows:
                reason = f'names the same file as {rows[file][0]}: drop one of the rows'
                yield Bad(place=place, column=self.on, path=file, reason=reason)
            else:
                rows[file] = (place, row)


def _record(
    place: str, row: Mapping[str, Any], key: list[str], media: Mapping[str, str], *, root: Path, text: bool
) -> Record | Bad:
    """A row of a manifest, its media columns taken as paths below the root."""
    values = {name: value for name, value in row.items() if name not in media}
    paths: dict[str, Path | None] = {}
    for name in row.keys() & media.keys():
        if '://' in str(row[name]):
            key_text = '/'.join(str(values.get(part) or '') for part in key)
            return Bad(
                place=place,
                key=key_text,
                column=name,
                path=str(row[name]),
                reason='is a URL: download it, and give the path',
            )
        paths[name] = None if row[name] in (None, '') else root / str(row[name])
    return Record(place=place, values=values, media=paths, root=root, text=text)


def short_key(path: str) -> str:
    """A path as a key: itself, or its end behind a digest when it is too long for Pixeltable to keep apart.

    >>> short_key('a/b.jpg'), len(short_key('x' * 400))
    ('a/b.jpg', 255)
    """
    if len(path) <= KEY_LENGTH:
        return path
    digest = hashlib.blake2b(path.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()
    return f'{digest}…{path[len(digest) + 1 - KEY_LENGTH :]}'


def _has_surrogates(text: str) -> bool:
    return any('\ud800' <= character <= '\udfff' for character in text)


def _clean(text: str) -> str:
    return text.encode('utf-8', 'replace').decode()[:60]
