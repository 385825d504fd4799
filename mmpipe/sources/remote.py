"""Object stores and URLs as places of media: what is listed, what is downloaded, and what is refused."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmpipe.errors import BadInputError, SourceError
from mmpipe.home import media_dir
from mmpipe.shards.transfer import passing
from mmpipe.sources.objects import Objects
from mmpipe.sources.record import Bad, Record
from mmpipe.sources.web import Network, download
from mmpipe.stores import STORES, file_system, protocol_of, what

WEB = ('http', 'https')
THREADS, PAGE = 16, 64
PIECE = 4 << 20


def is_url(text: object) -> bool:
    """Whether a path names something that is no local file.

    >>> is_url('s3://bucket/a.jpg'), is_url('photos/a.jpg')
    (True, False)
    """
    return '://' in str(text)


def is_web(text: object) -> bool:
    """Whether a path is an http or https URL.

    >>> is_web('https://host/a.jpg'), is_web('s3://bucket/a.jpg')
    (True, False)
    """
    return is_url(text) and protocol_of(str(text)) in WEB


def split_pattern(pattern: str) -> tuple[str, str]:
    """The URL of the folder before the first wildcard, and the rest.

    >>> split_pattern('s3://bucket/photos/**/*.jpg'), split_pattern('s3://bucket/photos/')
    (('s3://bucket/photos', '**/*.jpg'), ('s3://bucket/photos', ''))
    """
    parts = pattern.rstrip('/').split('/')
    magic = next((i for i, part in enumerate(parts) if set(part) & set('*?[')), len(parts))
    return '/'.join(parts[:magic]), '/'.join(parts[magic:])


class Store:
    """One object store, or the web: lists, and downloads what is not here yet.

    Args:
        options: of the fsspec file system, such as `{'endpoint_url': ...}`.
        allow_urls: whether http and https URLs are downloaded.
        objects: where downloads lie; the project's media folder when None.
        network: names and connections of http, for tests.

    Attributes:
        downloaded: how many files were downloaded so far.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        allow_urls: bool = False,
        objects: Objects | None = None,
        network: Network | None = None,
    ) -> None:
        self.options = dict(options or {})
        self.allow_urls = allow_urls
        self.objects = objects or Objects(media_dir())
        self.network = network
        self.downloaded = 0
        self._folders: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._patterns: dict[str, dict[str, str]] = {}
        self._systems: dict[str, Any] = {}
        self._infos: dict[str, Mapping[str, Any]] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._counting = threading.Lock()
        self._asking_again = threading.Lock()
        self._gone = ''  # why nothing more is asked of it

    def check(self, url: str) -> None:
        """Whether a URL is of a kind that is read at all.

        Raises:
            BadInputError: another protocol, a chain of them, or http without being allowed.
        """
        protocol = protocol_of(url)
        if is_web(url) and not self.allow_urls:
            raise BadInputError('is a URL: download it and give the path, or give allow_urls=True')
        if (protocol not in STORES and protocol not in WEB) or '::' in url:
            raise BadInputError(f'is of a kind that is not read: give a path, or a URL of {", ".join(STORES)} or https')

    def forget(self) -> None:
        """Take every listing anew: what is in the store may have changed since."""
        self._gone = ''
        self._folders.clear()
        self._patterns.clear()
        self._infos.clear()

    def list(self, pattern: str) -> Mapping[str, str]:
        """Objects below a URL or matching a pattern, as of the last `forget`.

        Args:
            pattern: 's3://bucket/photos' or 's3://bucket/photos/**/*.jpg'.

        Returns:
            Path below `split_pattern(pattern)[0]` to URL of each object, sorted.

        Raises:
            SourceError: the store cannot be listed, or there is nothing.
        """
        if pattern in self._patterns:
            return self._patterns[pattern]
        base, rest = split_pattern(pattern)
        if is_web(pattern) or base.endswith(':/'):
            raise SourceError(f"'{pattern}' cannot be listed: name a bucket or folder before the pattern; of http "
                              f'files give a manifest: mm.sources.rows(..., allow_urls=True)')  # fmt: skip
        system = self._system(pattern)
        system.invalidate_cache()
        folder = system._strip_protocol(base).rstrip('/')
        try:
            found = system.glob(f'{folder}/{rest}', detail=True) if rest else system.find(folder, detail=True)
        except Exception as error:
            raise SourceError(f"'{pattern}' cannot be listed ({what(error)}): check name, rights, network") from error
        if not found:  # a prefix that is not there looks like one that is empty
            raise SourceError(f"there is nothing at '{pattern}': check the name, or add the objects")
        listed = self._patterns[pattern] = {}
        for name, info in sorted(found.items()):
            if info.get('type') != 'directory' and name.startswith(f'{folder}/'):
                path = name[len(folder) + 1 :]
                listed[path] = f'{base}/{path}'
                self._infos[listed[path]] = info
        return listed

    def fetch(self, url: str) -> Path:
        """The local file with the content of a URL; downloaded unless it is known to be the same.

        Raises:
            BadInputError: refused, not there, or the download failed.
            SourceError: the store does not answer any more.
        """
        self.check(url)
        if self._gone:
            raise SourceError(self._gone)
        with self._fetching.setdefault(url, threading.Lock()):  # rows may share a file
            return self._fetch(url)

    def _fetch(self, url: str) -> Path:
        before = self.objects.find(url)
        if is_web(url):
            answer = download(url, known=before[0] if before else '', network=self.network)
            if answer.pieces is None and before is not None:
                return before[1]
            self._count()
            return self.objects.put(url, answer.identity, answer.pieces or ())
        system = self._system(url)
        path = system._strip_protocol(url)
        try:
            info = self._info(system, url, path)
            identity = _identity(info)
            if before is not None and identity and before[0] == identity:
                return before[1]
            with system.open(path, 'rb') as file:
                self._count()
                return self.objects.put(url, identity, _whole(iter(lambda: file.read(PIECE), b''), info.get('size')))
        except BadInputError:
            raise
        except FileNotFoundError:
            raise BadInputError('does not exist: add the object, or correct the path') from None
        except Exception as error:  # each store has exceptions of its own
            if passing(error) and self._is_gone(url):
                raise SourceError(self._gone) from error
            raise BadInputError(f'cannot be downloaded ({what(error)}): check rights and network') from error

    def _is_gone(self, url: str) -> bool:
        """Whether the store answers nothing at all, so that no row is at fault, and those to come would fail too."""
        with self._asking_again:
            if not self._gone:
                try:
                    system = self._system(url)
                    system.ls(system._strip_protocol(posixpath.dirname(url)), detail=False, refresh=True)
                except Exception as error:  # noqa: BLE001 (each store has exceptions of its own)
                    if passing(error):
                        self._gone = (
                            f"'{url}' cannot be downloaded, and its store does not answer ({what(error)}). Rows before "
                            f'it stay. When it is back, run the same again: what is here already is not asked for.'
                        )
        return bool(self._gone)

    def _count(self) -> None:
        with self._counting:
            self.downloaded += 1

    def _info(self, system: Any, url: str, path: str) -> Mapping[str, Any]:
        """What the listing says of an object; a folder is listed once, for all the rows that name files in it."""
        if url in self._infos:
            return self._infos[url]
        folder = posixpath.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = {entry['name']: entry for entry in system.ls(folder, detail=True, refresh=True)}
        if path not in self._folders[folder]:
            raise FileNotFoundError(path)
        return self._folders[folder][path]

    def _system(self, url: str) -> Any:
        self.check(url)
        protocol = protocol_of(url)
        if protocol not in self._systems:
            self._systems[protocol] = file_system(url, self.options, move='check storage_options=')[0]
        return self._systems[protocol]


def below(base: str, path: str) -> str:
    """The URL of a path below a base URL.

    Raises:
        BadInputError: it leads out of the base.

    >>> below('s3://bucket/shop', 'photos/../a.jpg')
    's3://bucket/shop/a.jpg'
    >>> below('s3://bucket/shop', '../b.jpg')
    Traceback (most recent call last):
    ...
    mmpipe.errors.BadInputError: lies outside 's3://bucket/shop': move it there, or give root=
    """
    if is_url(path):
        inside = path.startswith(f'{base.rstrip("/")}/')
        rest = path[len(base.rstrip('/')) + 1 :] if inside else '..'
    else:
        rest = path
    whole = posixpath.normpath(rest)
    if whole.startswith(('/', '..')) or whole == '.' or '\\' in whole or '\x00' in whole:
        raise BadInputError(f"lies outside '{base}': move it there, or give root=")
    return f'{base.rstrip("/")}/{whole}'


def fetched(records: Iterable[Record | Bad], store: Store, key: Sequence[str]) -> Iterator[Record | Bad]:
    """Records with the files of their `urls` downloaded, a few at a time; a `Bad` for a file that cannot be had."""
    pending = iter(records)
    with ThreadPoolExecutor(THREADS) as pool:
        while page := list(islice(pending, PAGE)):
            yield from pool.map(lambda record: _with_files(record, store, key), page)


def _with_files(record: Record | Bad, store: Store, key: Sequence[str]) -> Record | Bad:
    if isinstance(record, Bad) or not record.urls:
        return record
    files: dict[str, Path] = {}
    for column, url in record.urls.items():
        try:
            files[column] = store.fetch(url)
        except BadInputError as error:
            text = '/'.join(str(record.values.get(name) or '') for name in key)
            return Bad(place=record.place, key=text, column=column, path=url, reason=str(error))
    return replace(record, media={**record.media, **files}, urls={}, downloaded=frozenset(files))


def _whole(pieces: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    """The pieces, if they are as many bytes as were listed: an object that changes meanwhile is of no one version."""
    got = 0
    for piece in pieces:
        got += len(piece)
        yield piece
    if size is not None and got != size:
        raise BadInputError(f'has {got} bytes, and {size} were listed: it is being written, try again')


def _identity(info: Mapping[str, Any]) -> str:
    """What a listing says of an object's content; '' when it says too little to trust."""
    etag = info.get('ETag') or info.get('etag') or info.get('md5Hash') or info.get('content_md5') or ''
    times = ('LastModified', 'last_modified', 'updated', 'mtime', 'modified', 'created')
    when = next((info[name] for name in times if info.get(name) is not None), '')
    return f'{etag} {info.get("size")} {when}' if etag or when else ''
