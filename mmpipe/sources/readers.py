"""Folders and prefixes as sources: a row per file."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmpipe.errors import BadInputError, SourceError
from mmpipe.home import media_dir
from mmpipe.sources.manifest import Rows, record_of, rows
from mmpipe.sources.record import Bad, Record
from mmpipe.sources.remote import Store, fetched, is_url, split_pattern

KEY_LENGTH = 255  # Pixeltable keeps a primary key unique over its first 256 characters


def files(
    pattern: str | Path,
    *,
    column: str | None = None,
    metadata: str | Path | None = None,
    on: str = 'file',
    values: Callable[[Path], Mapping[str, Any]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Files:
    """One row per file of a folder; the key is the file's path below it.

    Args:
        pattern: a folder (all files below it) or a glob such as 'photos/**/*.jpg', also of an object store:
            's3://bucket/photos/*.jpg'. Objects are downloaded into `.mmpipe/media` as their listing says they are new.
        column: the media column the file goes into; may be left out when the table has one media column.
        metadata: CSV, JSON-lines or Parquet file with further columns, one row per file.
        on: the metadata column that holds the file's path below the folder, or just its name. Other media columns of
            the metadata hold paths below the folder too.
        values: function from the file's path below the folder to further columns, such as its parent's name.
        storage_options: options of the fsspec file system, such as `{'endpoint_url': ...}`.

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
    text = str(pattern).removeprefix('file://')
    about = None if metadata is None else rows(metadata, storage_options=storage_options)
    if is_url(text):
        store = Store(storage_options)
        try:
            store.check(text)
        except BadInputError as error:
            raise SourceError(f"'{text}' {error}") from error
        options: dict[str, Any] = {'column': column, 'metadata': about, 'on': on, 'values': values}
        return RemoteFiles(root=media_dir(), pattern=text, base=split_pattern(text)[0], store=store, **options)
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
        metadata=about,
        on=on,
        values=values,
    )


@dataclass(frozen=True, kw_only=True)
class Files:
    """Source made by `files`."""

    root: Path
    pattern: str
    column: str | None
    metadata: Rows | None
    on: str
    values: Callable[[Path], Mapping[str, Any]] | None
    base: str = ''

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
            record = record_of(name, values, key, media, root=self.root, text=text, base=self.base)
            yield record if isinstance(record, Bad) else self._placed(record, column, path)
        for name in sorted(rows.keys() - used):
            reason = f"names a file that is not in '{self.base or self.root}': add it, or drop the row"
            yield Bad(place=rows[name][0], column=self.on, path=name, reason=reason)

    def _placed(self, record: Record, column: str, path: Path) -> Record:
        """The record with its own file."""
        return replace(record, media={**record.media, column: self.root / path})

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


@dataclass(frozen=True, kw_only=True)
class RemoteFiles(Files):
    """Source made by `files` of a URL."""

    store: Store = field(repr=False)

    @property
    def name(self) -> str:
        """The URL."""
        return self.pattern

    def total(self) -> int | None:
        """Not known before it is listed."""
        return None

    def _paths(self) -> list[Path]:
        own = None if self.metadata is None else self.metadata.url
        return [Path(path) for path, url in self.store.list(self.pattern).items() if url != own and _plain(path)]

    def _placed(self, record: Record, column: str, path: Path) -> Record:
        return replace(record, urls={**record.urls, column: f'{self.base}/{path.as_posix()}'})

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """A record per object; see `Source.records`."""
        self.store.forget()
        yield from fetched(super().records(key=key, media=media), self.store, key)
        for path, url in self.store.list(self.pattern).items():
            if not _plain(path):
                yield Bad(place=url, path=url, reason='has a name that is no path: rename the object')


def _plain(path: str) -> bool:
    return Path(path).as_posix() == path and '..' not in Path(path).parts and '\\' not in path


def short_key(path: str) -> str:
    """A path as a key: itself, or its end behind a digest when it is too long for Pixeltable to keep apart.

    >>> short_key('a/b.jpg'), len(short_key('x' * 400))
    ('a/b.jpg', 255)
    """
    if len(path) <= KEY_LENGTH:
        return path
    digest = hashlib.blake2b(path.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()
    return f'{digest}…{path[len(digest) + 1 - KEY_LENGTH :]}'
