"""A snapshot root on an object store.

    url/latest/000000000000    written by every writer, to see that the store refuses to write an object twice
    url/latest/000000000012    the pointer after its twelfth move: id of the snapshot, and a token of its writer
    url/manifests/... masks/... shards/... versions/...    as in a directory (`mmpipe.shards.manifest`)

The newest number is the pointer. A number is created and never written again: the commit is one PUT that the store
refuses where the object exists (`If-None-Match: *` on S3 and Azure, `ifGenerationMatch=0` on Google), so of two writers
that go on from number 11, one gets 12, and the other learns that it has to begin again on top of that. No lock is
shared. Numbers stay, some 50 bytes each: they are found by listing them, a thousand per request, and removing one would
let a slow writer take it again.

Files go up whole, before anything refers to them. They are read whole (`mmpipe.shards.copies`); of keys and of few rows
only their bytes (`mmpipe.shards.parts`). What is written is kept as a copy too, since the next snapshot reads keys and
digests there.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpipe.errors import ConfigError, MmpipeError, ShardError
from mmpipe.shards import copies
from mmpipe.shards.root import RENEW_S, Entry, Pointer, Root
from mmpipe.shards.transfer import Progress, Read, pieces, read_range
from mmpipe.stores import STORES, file_system, protocol_of, what

MOVE = 'check name, rights, network and the settings of the store'
THREADS = 16
TRIES = 4  # of a pointer write that ended without saying how
DIGITS = 12
NUMBER = re.compile(rf'latest/[0-9]{{{DIGITS}}}')
PROOF = 'latest/' + '0' * DIGITS
TIMES = ('LastModified', 'last_modified', 'mtime', 'updated', 'modified', 'created')

_proven: set[str] = set()
_memory = threading.Lock()  # fsspec's memory store looks, then writes; it is one process, so a lock makes that one step


class ObjectRoot(Root):
    """A folder of a bucket, or a whole bucket, as `s3://bucket/shop`.

    Keys, regions and endpoints are what the store's package finds: environment variables such as AWS_ENDPOINT_URL and
    AWS_PROFILE, or fsspec's configuration files. None of them gets into manifests, runs or pickles.

    >>> root = ObjectRoot('memory://docs/shop/')
    >>> root.latest(), root.move('0123456789abcdef', None), root.latest().number
    (None, None, 1)
    >>> root.move('fedcba9876543210', None)
    Traceback (most recent call last):
    ...
    mmpipe.shards.root.Moved: another writer committed a first snapshot in 'memory://docs/shop' meanwhile: write yours
    again, on top of it
    """

    remote = True

    def __init__(self, url: str) -> None:
        if '::' in url:
            raise ConfigError(f"root='{url}' is a chain of URLs: name one folder of one store, as s3://bucket/shop")
        self.text = url.rstrip('/')

    def at(self, name: str) -> str:  # noqa: D102 (as Root says, here and below)
        return f'{self.text}/{name}'

    def absolute(self) -> str:  # noqa: D102
        return self.text

    def _system(self) -> tuple[Any, str]:
        """The file system, and the path of the root there; not kept, since a forked process needs one of its own."""
        # Listings are never taken from fsspec's memory: other writers change them.
        system, path = file_system(self.text, {'use_listings_cache': False}, move=MOVE)
        return system, path.rstrip('/')

    def _path(self, name: str) -> str:
        return f'{self._system()[1]}/{name}'

    @contextmanager
    def _asking(self, name: str, done: str = 'read') -> Iterator[Any]:
        """The file system, with the store's own exceptions made into ours; FileNotFoundError of reading stays."""
        try:
            yield self._system()[0]
        except MmpipeError:
            raise
        except Exception as error:  # each store has exceptions of its own
            if isinstance(error, FileNotFoundError) and done == 'read':
                raise
            raise ShardError(f"'{self.at(name)}' cannot be {done} ({what(error)}): {MOVE}") from error

    def read(self, name: str) -> bytes:  # noqa: D102
        with self._asking(name) as system:
            return system.cat_file(self._path(name))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:  # noqa: D102
        def read(name: str) -> dict[str, bytes]:
            try:
                return {name: self.read(name)}
            except FileNotFoundError:
                return {}

        with ThreadPoolExecutor(THREADS) as pool:  # not cat(), which takes [ and * in the name of a folder for patterns
            return {name: content for found in pool.map(read, names) for name, content in found.items()}

    def entry(self, name: str) -> Entry | None:  # noqa: D102
        try:
            with self._asking(name) as system:
                return _entry(system.info(self._path(name)))
        except FileNotFoundError:
            return None

    def entries(self, folder: str) -> dict[str, Entry]:  # noqa: D102
        try:
            with self._asking(folder) as system:
                found = system.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {f'{folder}/{path.rpartition("/")[2]}': _entry(info) for path, info in found.items()
                if path.rpartition('/')[0] == self._path(folder)}  # fmt: skip

    def sizes(self, names: Collection[str]) -> dict[str, int]:  # noqa: D102
        there = self.entries('shards')  # one request for a thousand of them
        return {name: there[name].size for name in names if name in there}

    def renew(self, name: str, size: int) -> bool:  # noqa: D102
        found = self.entry(name)
        return found is not None and found.size == size and not found.older(RENEW_S)

    def write(self, name: str, data: Any, *, sha256: str | None = None) -> None:  # noqa: D102
        if sha256 is None:
            with self._asking(name, 'written') as system:
                system.pipe_file(self._path(name), bytes(data))
            return
        temporary = copies.temporary()
        try:
            with open(temporary, 'xb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._upload(temporary, name, sha256)
        finally:
            temporary.unlink(missing_ok=True)

    def workspace(self, folder: str) -> Path:  # noqa: D102
        return copies.workspace()

    def keep(self, temporary: Path, name: str, *, size: int, sha256: str) -> None:  # noqa: D102
        if self.renew(name, size):
            copies.keep(temporary, sha256)
        else:
            self._upload(temporary, name, sha256)

    def _upload(self, temporary: Path, name: str, sha256: str) -> None:
        with self._asking(name, 'written') as system:
            system.put_file(str(temporary), self._path(name))
        copies.keep(temporary, sha256)

    def remove(self, names: Collection[str], *, grace_s: float) -> list[str]:  # noqa: D102
        with ThreadPoolExecutor(THREADS) as pool:
            gone = pool.map(lambda name: self._remove_old(name, grace_s), names)
            return [name for name, removed in zip(names, gone, strict=True) if removed]

    def _remove(self, name: str) -> None:
        with self._asking(name, 'removed') as system:
            system.rm_file(self._path(name))

    def mapped(self, name: str, *, size: int, sha256: str, progress: Progress | None = None) -> pa.NativeFile:  # noqa: D102
        def load(progress: Progress) -> Iterator[bytes]:
            return pieces(self._read(name), progress)

        return pa.BufferReader(copies.fetch(sha256, size, load, url=self.at(name), progress=progress))

    def read_range(self, name: str, start: int, end: int) -> bytes:  # noqa: D102
        return read_range(self._read(name), start, end, url=self.at(name))

    def _read(self, name: str) -> Read:
        """Reads bytes of a file in one request, without the store's package trying again: `transfer` does."""

        def read(start: int, end: int, limit_s: float) -> bytes:
            import fsspec

            options: dict[str, Any] = {'use_listings_cache': False}
            on_s3 = STORES.get(protocol_of(self.text)) == 's3fs'
            if on_s3:
                settled = fsspec.config.conf.get(protocol_of(self.text), {}).get('config_kwargs', {})
                options['config_kwargs'] = {**settled, 'retries': {'total_max_attempts': 1}}
            system, path = file_system(self.at(name), options, move=MOVE)
            if on_s3:
                system.retries = 1
            if getattr(system, 'async_impl', False):
                call = system._cat_file
                return fsspec.asyn.sync(system.loop, call, path, start=start, end=end, timeout=limit_s)
            return system.cat_file(path, start=start, end=end)

        return read

    def digest(self, name: str) -> str:  # noqa: D102
        with self._asking(name) as system, system.open(self._path(name), 'rb') as file:
            found = hashlib.sha256()
            while piece := file.read(4 << 20):
                found.update(piece)
            return found.hexdigest()

    def make_writable(self) -> None:  # noqa: D102
        if protocol_of(self.text) not in STORES:
            raise ConfigError(
                f"root='{self.text}': snapshots are written to stores that refuse to write an object twice, which is "
                f'what keeps two writers apart: {", ".join(STORES)}. Write to one of these or to a directory.'
            )
        if self.text in _proven:
            return
        # Twice where it is new. A store that takes it twice would take two commits of one number, and lose one.
        if not (self._refuses() or self._refuses()):
            raise ConfigError(
                f"root='{self.text}': this store writes an object that is there already although it was asked not to "
                f'(`If-None-Match: *`), so two writers would overwrite each other. Bring it or '
                f'{STORES[protocol_of(self.text)]} up to date, or write to a directory.'
            )
        _proven.add(self.text)

    def _refuses(self) -> bool:
        try:
            self._create(PROOF, b'mmpipe\n')
        except Exception as error:
            if _is_refusal(error):
                return True
            if type(error).__name__ == 'ParamValidationError':  # an s3fs from before it could ask for that
                return False
            raise ShardError(f"'{self.text}' cannot be written ({what(error)}): {MOVE}") from error
        return False

    def _create(self, name: str, data: bytes) -> None:
        """Write an object that is not there yet, in one request that the store refuses where it is."""
        with _memory if protocol_of(self.text) == 'memory' else nullcontext():
            self._system()[0].pipe_file(self._path(name), data, mode='create')

    def latest(self) -> Pointer | None:  # noqa: D102
        names = [name for name in self.entries('latest') if NUMBER.fullmatch(name) and name != PROOF]
        if names:
            return self._pointer(int(max(names).rpartition('/')[2]))
        try:  # a directory that was copied here
            identity = self.read('LATEST').decode(errors='replace').strip()
        except FileNotFoundError:
            return None
        return Pointer(id=identity) if identity else None

    def _pointer(self, number: int) -> Pointer:
        identity, _, token = self.read(_numbered(number)).decode(errors='replace').strip().partition(' ')
        return Pointer(id=identity, number=number, token=token)

    def move(self, identity: str, after: Pointer | None) -> None:  # noqa: D102
        self.make_writable()
        number = 1 + (after.number if after is not None else 0)
        token = secrets.token_hex(8)
        for again in range(TRIES):
            try:
                self._create(_numbered(number), f'{identity} {token}\n'.encode())
                return
            except Exception as error:  # noqa: BLE001 (refused, or an answer was lost: what is there now says which)
                failure = error
            try:
                if self._pointer(number).token == token:
                    return
            except FileNotFoundError:
                time.sleep(0.1 * 2**again)
            else:
                raise self.moved(after)
        raise ShardError(f"'{self.at(_numbered(number))}' cannot be written ({what(failure)}): {MOVE}") from failure


def _numbered(number: int) -> str:
    return f'latest/{number:0{DIGITS}d}'


def _is_refusal(error: Exception) -> bool:
    """Whether a store said no because the object exists; s3fs tells only when the answer names the condition."""
    answer = getattr(error.__cause__, 'response', None) or {}
    status = answer.get('ResponseMetadata', {}).get('HTTPStatusCode') if isinstance(answer, Mapping) else None
    return isinstance(error, FileExistsError) or status == 412


def _entry(info: Mapping[str, Any]) -> Entry:
    when = next((info[name] for name in TIMES if info.get(name) is not None), 0.0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    return Entry(size=int(info.get('size') or 0), modified=seconds)
