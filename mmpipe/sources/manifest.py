"""Manifests: a row per line of CSV, JSON lines or Parquet, here or in an object store."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpipe.errors import BadInputError, SourceError
from mmpipe.home import media_dir
from mmpipe.sources.objects import ending
from mmpipe.sources.record import Bad, Record
from mmpipe.sources.remote import Store, below, fetched, is_url, is_web
from mmpipe.sources.values import has_surrogates

MANIFESTS = ('.csv', '.jsonl', '.ndjson', '.parquet')


def rows(
    manifest: str | Path,
    *,
    root: str | Path | None = None,
    allow_urls: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Rows:
    """Rows of a CSV, JSON-lines or Parquet file; its columns are columns of the table, media columns hold paths.

    Args:
        manifest: path or URL of the file; its ending tells the format. Empty CSV fields are null.
        root: directory or URL the paths are relative to, and that they may not leave; the manifest's own when None.
            Objects of a store (s3://, gs://, az://) are downloaded into `.mmpipe/media`, and again only when their
            listing says that they changed.
        allow_urls: whether manifest and media columns may be http and https URLs. Only public addresses are asked.
        storage_options: options of the fsspec file system, such as `{'endpoint_url': ...}`.

    Returns:
        A `Source`; nothing is read yet.

    Raises:
        SourceError: the file is missing, of another format, or a URL of a kind that is not read.

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
    options = Store(storage_options, allow_urls=allow_urls)
    name, folder = (None if each is None else str(each).removeprefix('file://') for each in (manifest, root))
    assert name is not None
    for url in filter(is_url, (name, folder)):
        try:
            options.check(str(url))
        except BadInputError as error:
            raise SourceError(f"'{url}' {error}") from error
    kind = ending(name) if is_url(name) else Path(name).suffix.lower()
    if not is_url(name) and not Path(name).is_file():
        raise SourceError(f"there is no file '{manifest}'. Give the path of a CSV, JSON-lines or Parquet file.")
    if kind not in MANIFESTS:
        raise SourceError(f"'{manifest}' ends in '{kind}'; a manifest ends in {', '.join(MANIFESTS)}")
    if is_url(name):
        beside = (name.partition('?')[0] if is_web(name) else name).rpartition('/')[0]
        base = beside if folder is None else folder if is_url(folder) else ''
        local = Path(folder).resolve() if folder is not None and not base else media_dir()
        return Rows(path=None, url=name, root=local, base=base, store=options)
    path = Path(name)
    base = folder if folder is not None and is_url(folder) else ''
    local = media_dir() if base else Path(folder or path.parent).resolve()
    return Rows(path=path.resolve(), root=local, base=base, store=options if base or allow_urls else None)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Source made by `rows`; `url` instead of `path` for a manifest that is elsewhere, `base` for media that are."""

    path: Path | None
    root: Path
    url: str = ''
    base: str = ''
    store: Store | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Path or URL of the manifest."""
        return self.url or str(self.path)

    def total(self) -> int | None:
        """Rows of the file, as far as that is cheap to know."""
        if self.url:
            return None
        if self._ending == '.parquet':
            return self._parquet_file().metadata.num_rows
        with self._file().open('rb') as file:
            lines = sum(1 for _ in file)
        return max(lines - 1, 0) if self._ending == '.csv' else lines

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """The rows; see `Source.records`."""
        if self.store is None:
            return self._records(key, media)
        self.store.forget()
        return fetched(self._records(key, media), self.store, key)

    def _records(self, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        options = {'root': self.root, 'text': self.is_text, 'base': self.base, 'urls': self.store is not None}
        for place, row in self.raw():
            yield row if isinstance(row, Bad) else record_of(place, row, key, media, **options)  # type: ignore[arg-type]

    @property
    def _ending(self) -> str:
        return ending(self.url) if self.url else self._file().suffix.lower()

    def _file(self) -> Path:
        """The manifest, as a local file."""
        if self.path is not None:
            return self.path
        assert self.store is not None
        try:
            return self.store.fetch(self.url)
        except BadInputError as error:
            raise SourceError(f"'{self.url}' {error}") from error

    @property
    def is_text(self) -> bool:
        """Whether every value is text."""
        return self._ending == '.csv'

    def raw(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        """(place, row) pairs, a `Bad` in place of a row that cannot be read."""
        kind = self._ending
        return self._csv() if kind == '.csv' else self._parquet() if kind == '.parquet' else self._json_lines()

    def _csv(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        # Bad bytes become lone surrogates, so that one bad row does not stop the file.
        with self._file().open(encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
            reader = csv.reader(file, strict=True)  # else a quote that is never closed takes all rows behind it along
            try:
                header = next(reader, None)
            except csv.Error as error:
                raise SourceError(f"'{self.name}' is not CSV ({error}); its first line names the columns") from error
            if any(has_surrogates(name) for name in header or []):
                raise SourceError(f"the first line of '{self.name}' is not UTF-8: save the file as UTF-8")
            if not header:
                raise SourceError(f"'{self.name}' is empty; its first line names the columns")
            if len(set(header)) != len(header) or not all(header):
                raise SourceError(
                    f"'{self.name}' names a column twice, or leaves one without a name: {', '.join(header)}"
                )
            source = self.name
            separator = next((mark for mark in ';\t|' if mark in header[0]), '') if len(header) == 1 else ''
            if separator:
                raise SourceError(f"'{self.name}' seems to be separated by {separator!r}: save it with commas")
            while True:
                line = reader.line_num + 1
                place = f'{source} line {line}'
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    reason = f'is not CSV ({error}): correct the line'
                    if reader.line_num > line:
                        until = f'up to line {reader.line_num}, so none of these is read'
                        reason = f'opens a quote that is not closed {until}: close it'
                    yield place, Bad(place=place, reason=reason)
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
                if has_surrogates(''.join(fields)):
                    broken = [name for name, value in zip(header, fields, strict=True) if has_surrogates(value)]
                    reason = f'is not UTF-8: save the file as UTF-8 (the line starts with {_clean(fields[0])!r})'
                    yield place, Bad(place=place, column=broken[0], reason=reason)
                    continue
                yield place, {n: (v if v != '' else None) for n, v in zip(header, fields, strict=True)}

    def _json_lines(self) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
        with self._file().open('rb') as file:
            for number, line in enumerate(file, start=1):
                place = f'{self.name} line {number}'
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
                    yield f'{self.name} row {number}', row
        except pa.ArrowException as error:
            raise SourceError(
                f"'{self.name}' cannot be read behind row {number} ({error}): write the file again"
            ) from error

    def _parquet_file(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._file())
        except pa.ArrowException as error:
            raise SourceError(f"'{self.name}' is not a Parquet file ({error}): write the file again") from error


def record_of(
    place: str,
    row: Mapping[str, Any],
    key: list[str],
    media: Mapping[str, str],
    *,
    root: Path,
    text: bool,
    base: str = '',
    urls: bool = False,
) -> Record | Bad:
    """A row of a manifest, its media columns taken as paths below the root, or below a base URL."""
    values = {name: value for name, value in row.items() if name not in media}
    paths: dict[str, Path | None] = {}
    remote: dict[str, str] = {}
    for name in media:
        if name not in row:
            continue
        value = row[name]
        if value in (None, ''):
            paths[name] = None
            continue
        try:
            if urls and is_web(value):
                remote[name] = str(value)
            elif base:
                remote[name] = below(base, str(value))
            elif is_url(value):
                raise BadInputError('is a URL: download it, and give the path; or allow_urls=True for http and https')
            else:
                paths[name] = root / str(value)
        except BadInputError as error:
            key_text = '/'.join(str(values.get(part) or '') for part in key)
            return Bad(place=place, key=key_text, column=name, path=str(value), reason=str(error))
    return Record(place=place, values=values, media=paths, root=root, text=text, urls=remote)


def _clean(text: str) -> str:
    return text.encode('utf-8', 'replace').decode()[:60]
