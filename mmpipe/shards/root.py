"""Where the snapshots of a view lie: a local directory, or a folder of an object store that a URL names."""

from __future__ import annotations

import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpipe.durable import make_folders, sync_directory, write_bytes
from mmpipe.errors import ConfigError, ShardError
from mmpipe.shards.transfer import Progress

RENEW_S = 600.0  # seconds after which a file that is taken again is made young


class Moved(ShardError):
    """Another writer moved the pointer of a root first. What was written is there, and nothing refers to it."""


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Which snapshot of a root is the current one.

    Args:
        id: the snapshot's id.
        number: how many times the pointer of an object store was moved; 0 in a directory, where it is one file.
        token: what the writer that moved it has drawn, so that it knows its own move again.
    """

    id: str
    number: int = 0
    token: str = ''


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of a root: its size in bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float

    def older(self, seconds: float) -> bool:
        """Whether it was written that long ago, by the clock of this machine.

        >>> Entry(size=1, modified=0).older(60)
        True
        """
        return time.time() - self.modified >= seconds


class Root(ABC):
    """What the shard format needs of the place it lies in. Names are paths below it, with `/`.

    Attributes:
        text: the root as it was given, for messages and for `Snapshot.root`.
        remote: whether its files have to be fetched before they can be mapped.
        folders: where files lie that a collection may remove.
    """

    text: str
    remote = False
    folders: tuple[str, ...] = ('manifests', 'versions', 'masks', 'shards')

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.text}')"

    @abstractmethod
    def at(self, name: str) -> str:
        """The whole path or URL of a file, for messages."""

    @abstractmethod
    def absolute(self) -> str:
        """The root as a text that means the same in every process of this machine."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: it is not there.
        """

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those of some small files that are there."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    @abstractmethod
    def entry(self, name: str) -> Entry | None:
        """Size and time of a file; None where there is none."""

    @abstractmethod
    def entries(self, folder: str) -> dict[str, Entry]:
        """Names of the files right in a folder, with size and time; none where there is no such folder."""

    @abstractmethod
    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Sizes of those of some shards that are there."""

    @abstractmethod
    def renew(self, name: str, size: int) -> bool:
        """Whether a file of that size is there and young, so that no collection removes it before it is referred to.

        A writer that is told no writes the file, which makes it young.
        """

    @abstractmethod
    def write(self, name: str, data: Any, *, sha256: str | None = None) -> None:
        """Write a file whole or not at all, over whatever is there.

        Args:
            name: its path below the root.
            data: bytes-like content.
            sha256: digest of a shard, under which a copy may be kept at hand.
        """

    @abstractmethod
    def workspace(self, folder: str) -> Path:
        """Local directory in which a file is written before it is known how it is named."""

    @abstractmethod
    def keep(self, temporary: Path, name: str, *, size: int, sha256: str) -> None:
        """Give a finished file of the workspace its name; one that is there already is kept."""

    def remove(self, names: Collection[str], *, grace_s: float) -> list[str]:
        """Remove files that are still older than the grace period; returns the names of those that were."""
        return [name for name in names if self._remove_old(name, grace_s)]

    def _remove_old(self, name: str, grace_s: float) -> bool:
        found = self.entry(name)  # asked again right before: a writer may have made it young since it was listed
        if found is None or not found.older(grace_s):
            return False
        self._remove(name)
        return True

    @abstractmethod
    def _remove(self, name: str) -> None: ...

    @abstractmethod
    def mapped(self, name: str, *, size: int, sha256: str, progress: Progress | None = None) -> pa.NativeFile:
        """The content of a shard, mapped; of an object store a copy, fetched where there is none.

        Args:
            name: its path below the root.
            size: its bytes.
            sha256: digest of its content.
            progress: where a fetch says how far it is.

        Raises:
            ShardError: it is missing or damaged.
        """

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Some bytes of a file of an object store, from a start to an end.

        Raises:
            ShardError: the store cannot be read, or the file ends before.
            FileNotFoundError: it is not there.
        """
        raise NotImplementedError  # what is mapped needs no ranges

    @abstractmethod
    def digest(self, name: str) -> str:
        """SHA-256 of a file as it lies in the root now.

        Raises:
            FileNotFoundError: it is not there.
        """

    def make_writable(self) -> None:  # noqa: B027 (most roots need nothing)
        """Find out before any work whether the pointer can be moved here.

        Raises:
            ConfigError: nothing there keeps two writers from overwriting each other.
            ShardError: it cannot be written.
        """

    @abstractmethod
    def latest(self) -> Pointer | None:
        """The pointer as it is; None where nothing was committed."""

    @abstractmethod
    def move(self, identity: str, after: Pointer | None) -> None:
        """Point to a snapshot: the commit.

        Args:
            identity: its id.
            after: the pointer as it was when the snapshot was begun.

        Raises:
            Moved: another writer has moved it since.
        """

    def moved(self, after: Pointer | None) -> Moved:
        """The error of a writer that came second."""
        before = f'a snapshot after {after.id}' if after is not None else 'a first snapshot'
        return Moved(f"another writer committed {before} in '{self.text}' meanwhile: write yours again, on top of it")


class LocalRoot(Root):
    """A directory. Files are renamed into place; the pointer is the file LATEST, and writers hold a lock.

    >>> import tempfile
    >>> root = LocalRoot(Path(tempfile.mkdtemp()))
    >>> root.latest(), root.move('0123456789abcdef', None), root.latest().id
    (None, None, '0123456789abcdef')
    """

    folders = (*Root.folders, '')

    def __init__(self, folder: Path) -> None:
        self.folder, self.text = folder, str(folder)

    def at(self, name: str) -> str:  # noqa: D102 (as Root says, here and below)
        return str(self.folder / name)

    def absolute(self) -> str:  # noqa: D102
        return os.path.abspath(self.folder)

    def read(self, name: str) -> bytes:  # noqa: D102
        return (self.folder / name).read_bytes()

    def entry(self, name: str) -> Entry | None:  # noqa: D102
        try:
            found = os.stat(self.folder / name)
        except FileNotFoundError:
            return None
        return Entry(size=found.st_size, modified=found.st_mtime)

    def entries(self, folder: str) -> dict[str, Entry]:  # noqa: D102
        place = self.folder / folder
        names = [path.relative_to(self.folder).as_posix() for path in place.glob('*') if path.is_file()]
        return {name: found for name in names if (found := self.entry(name)) is not None}

    def sizes(self, names: Collection[str]) -> dict[str, int]:  # noqa: D102
        return {name: found.size for name in names if (found := self.entry(name)) is not None}

    def renew(self, name: str, size: int) -> bool:  # noqa: D102
        found = self.entry(name)
        if found is None or found.size != size:
            return False
        try:
            if found.older(RENEW_S):
                os.utime(self.folder / name)
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, data: Any, *, sha256: str | None = None) -> None:  # noqa: D102
        write_bytes(self.folder / name, data)

    def workspace(self, folder: str) -> Path:  # noqa: D102
        make_folders(self.folder / folder)
        return self.folder / folder

    def keep(self, temporary: Path, name: str, *, size: int, sha256: str) -> None:  # noqa: D102
        if self.renew(name, size):
            temporary.unlink()
        else:
            os.replace(temporary, self.folder / name)
            sync_directory((self.folder / name).parent)

    def _remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def mapped(self, name: str, *, size: int, sha256: str, progress: Progress | None = None) -> pa.NativeFile:  # noqa: D102
        return pa.memory_map(str(self.folder / name))

    def digest(self, name: str) -> str:  # noqa: D102
        with open(self.folder / name, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()

    def latest(self) -> Pointer | None:  # noqa: D102
        try:
            identity = self.read('LATEST').decode(errors='replace').strip()
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise ShardError(
                f"'{self.text}' is a file, and a snapshot root is a directory: name the directory"
            ) from None
        return Pointer(id=identity) if identity else None

    def move(self, identity: str, after: Pointer | None) -> None:  # noqa: D102
        if self.latest() != after:  # no more than a look: what keeps two writers apart is the lock of the project
            raise self.moved(after)
        self.write('LATEST', (identity + '\n').encode())


def root_of(root: str | Path | Root) -> Root:
    """The root that a path or a URL names.

    Raises:
        ConfigError: a chain of URLs, or a URL that was made a `Path` of.

    >>> root_of('shards/shop'), root_of('s3://bucket/shop/'), root_of('file:///srv/shop')
    (LocalRoot('shards/shop'), ObjectRoot('s3://bucket/shop'), LocalRoot('/srv/shop'))
    """
    if isinstance(root, Root):
        return root
    text = os.fspath(root)
    if isinstance(root, Path) and re.match(r'[a-z][a-z0-9+]*:/', text):
        raise ConfigError(f'root={root!r} was a URL before it was made a Path, which drops a slash: pass it as a str')
    if '://' not in text:
        return LocalRoot(Path(text))
    if text.startswith('file://'):
        return LocalRoot(Path(text.removeprefix('file://')))
    from mmpipe.shards.objects import ObjectRoot

    return ObjectRoot(text)


def place_of(root: str | Path | Root) -> str:
    """A root as a text that is the same however it was named: for locks, run records and comparisons.

    >>> place_of('s3://bucket/shop/'), place_of('/srv/x/../shop')
    ('s3://bucket/shop', '/srv/shop')
    """
    found = root_of(root)
    return found.text if found.remote else str(Path(found.absolute()).resolve())
