"""Local copies of remote shards, named by their digests: what is mapped when a snapshot of an object store is read.

    home/cache/shards/<2 digits>/<sha256>.arrow     a whole shard, checked before it got this name; never changed
    home/cache/shards/<2 digits>/<sha256>.keys.arrow  keys of a shard that is not here (`mmpipe.shards.parts`)
    home/cache/shards/<2 digits>/<sha256>.part      one on its way
    home/cache/shards/<2 digits>/<sha256>.lock      held by who fetches it; its length is the space set aside
    home/cache/shards/lock                          held while space is made
    home/cache/shards/.<token>.tmp                  one that is written here, to go up to a store

All processes of a machine share it. Locks are of the kernel (`flock`), which drops them when a process dies:

- who fetches holds `.lock`, so a shard is fetched once, and one that a killed process began is begun anew;
- who maps a copy holds a shared lock on it, as long as any array over the map lives; what is held is not removed;
- the longest unused copies go when there is no room (`cache_limit`). Where all are held, the cache grows and says so.

Safe to delete while nothing reads it; what is needed again is fetched again.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mmpipe.durable import make_folders, sync_file
from mmpipe.errors import ConfigError, ShardError
from mmpipe.home import shard_cache_dir
from mmpipe.shards import transfer
from mmpipe.shards.transfer import Progress

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and a file that is mapped cannot be removed
    fcntl = None  # type: ignore[assignment]

LIMIT_VARIABLE = 'MMPIPE_SHARD_CACHE_GB'
LOOK_S = 0.02  # between two looks at a shard that another process fetches
SPARE = 20  # where copies have to go, so much more of the limit is made free
PROCESSES = 16  # that fetch at once on a machine; with more of them the limit is passed a little
ROOM_S = 10.0
_log = logging.getLogger(__name__)
_told: set[Path] = set()
_room: dict[
    tuple[Path, str | None], tuple[float, int]
] = {}  # until when, and how many bytes, this process may add without a look
_counting = threading.Lock()


def cache_limit() -> int:
    """Bytes that copies may take on disk: `$MMPIPE_SHARD_CACHE_GB`, else half of what the disk has for them.

    Raises:
        ConfigError: it is no number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if text is None:
        folder = workspace()
        taken = sum(size for _, _, size in _kept(folder))
        return (shutil.disk_usage(folder).free + taken) // 2
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 < limit < float('inf'):
        raise ConfigError(f'{LIMIT_VARIABLE}={text}: a number of gigabytes above 0 is meant, such as 200.')
    return int(limit * 1e9)


def find(sha256: str, size: int) -> pa.Buffer | None:
    """The copy of a shard, mapped; None where there is none, or not all of it.

    It stays while the buffer, or anything over it, lives.

    >>> find('0' * 64, 1) is None
    True
    """
    return _mapped(_path(sha256), size)


def has(sha256: str, size: int) -> bool:
    """Whether there is a copy of a shard now.

    >>> has('0' * 64, 1)
    False
    """
    with suppress(FileNotFoundError):
        return os.stat(_path(sha256)).st_size == size
    return False


def workspace() -> Path:
    """The folder in which copies are written before they get their names."""
    make_folders(shard_cache_dir())
    return shard_cache_dir()


def temporary() -> Path:
    """A name for a copy on its way that nobody else has."""
    return workspace() / f'.{secrets.token_hex(8)}.tmp'


def keep(file: Path, sha256: str) -> None:
    """Make a finished file of the workspace the copy of a shard; its bytes are on the disk already."""
    path, size = _path(sha256), os.stat(file).st_size
    path.parent.mkdir(exist_ok=True)
    _make_room(size)
    os.replace(file, path)


def keep_keys(table: pa.Table, sha256: str) -> None:
    """Keep the keys of a shard that is not here, for the next process that asks for them."""
    file = temporary()
    try:
        with pa.OSFile(str(file), 'wb') as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        path = _keys_path(sha256)
        path.parent.mkdir(exist_ok=True)
        _make_room(os.stat(file).st_size)
        os.replace(file, path)
    finally:
        file.unlink(missing_ok=True)


def find_keys(sha256: str) -> pa.Table | None:
    """Keys that were kept, read into memory; None where there are none that can be read.

    >>> find_keys('0' * 64) is None
    True
    """
    path = _keys_path(sha256)
    try:
        data = path.read_bytes()
        os.utime(path)
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except (OSError, pa.ArrowException):
        return None


def fetch(
    sha256: str, size: int, load: Callable[[Progress], Iterable[bytes]], *, url: str, progress: Progress | None = None
) -> pa.Buffer:
    """The copy of a shard, mapped; it is loaded where there is none, once for all processes of the machine.

    Args:
        sha256: digest of its content.
        size: its bytes.
        load: gives its bytes in order.
        url: what is loaded, for messages.
        progress: where to say how far it is.

    Raises:
        ShardError: it is missing, its content is another than was written, or the store fails.
    """
    progress = progress or Progress(url, size)
    path = _path(sha256)
    while True:
        found = _mapped(path, size)
        if found is not None:
            return found
        with _sole(path.with_suffix('.lock')) as lock:
            if lock is None:
                _wait(path, progress)
            elif not has(sha256, size):  # else another process had it done in between
                _make_room(size, lock)
                progress.begin()  # also where another process had some of it, and was killed
                return _load(path, sha256, size, load(progress), url)


def _load(path: Path, sha256: str, size: int, pieces: Iterable[bytes], url: str) -> pa.Buffer:
    part, digest, count = path.with_suffix('.part'), hashlib.sha256(), 0
    try:
        with open(part, 'wb') as file:
            for piece in pieces:
                digest.update(piece)
                count += len(piece)
                file.write(piece)
                file.flush()  # its time is what others go by
        if count != size or digest.hexdigest() != sha256:
            raise ShardError(
                f"shard '{url}' does not match its digest. Restore it, or write the snapshot again into a new root."
            )
        sync_file(part)
        found = _mapped(part, size)  # held before it can be seen, and removed
        assert found is not None
        os.replace(part, path)
        return found
    except FileNotFoundError:
        raise ShardError(
            f"shard '{url}' is missing. Restore it, or write the snapshot again into a new root."
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _wait(path: Path, progress: Progress) -> None:
    """Give another process, or another thread, the time to fetch a shard."""
    if progress.cancelled.wait(LOOK_S):
        raise transfer.Cancelled
    newest = 0.0
    for file in (path.with_suffix('.part'), path.with_suffix('.lock')):
        with suppress(FileNotFoundError):
            found = os.stat(file)
            newest = max(newest, found.st_mtime)
            if file.suffix == '.part' and found.st_size > progress.done:
                progress.add(found.st_size - progress.done)
    still_s = time.time() - newest
    if newest and still_s > 2 * transfer.STALL_S:  # it gives up by itself before, and then this one tries
        raise ShardError(
            f"another process of this machine fetches '{progress.url}' and has got nothing for {still_s:.0f} s: end "
            f"it, or wait for it (it holds '{path.with_suffix('.lock')}')"
        )


@contextmanager
def _sole(path: Path) -> Iterator[IO[Any] | None]:
    """Hold a lock file, which goes afterwards; None where somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as file:
        if not _locked(file, alone=True, wait=False) or _gone(file):
            yield None
            return
        try:
            yield file
        finally:
            path.unlink(missing_ok=True)


def _mapped(path: Path, size: int) -> pa.Buffer | None:
    try:
        with open(path, 'rb') as file:
            _locked(file, alone=False, wait=True)  # only who removes it holds it alone, and not for long
            if _gone(file) or os.fstat(file.fileno()).st_size != size:
                return None
            with suppress(OSError):  # of another user
                os.utime(path)  # used now
            # The map has a duplicate of the descriptor, and with it the lock, until the last array over it is gone.
            return pa.py_buffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        return None


def _make_room(size: int, lock: IO[Any] | None = None) -> None:
    """Remove the longest unused copies until `size` bytes fit, and set them aside as the length of `lock`."""
    folder = workspace()
    here = (folder, os.environ.get(LIMIT_VARIABLE))
    with _counting:
        until, left = _room.get(here, (0.0, 0))
        if size <= left and time.monotonic() < until:
            _room[here] = until, left - size
            if lock is not None:
                os.ftruncate(lock.fileno(), size)
            return
    limit = cache_limit()
    with open(folder / 'lock', 'ab') as one_at_a_time:
        _locked(one_at_a_time, alone=True, wait=True)
        files = _kept(folder)
        total = size + sum(taken for _, _, taken in files)
        if total > limit:
            for _, name, taken in sorted(files):
                if total <= limit - limit // SPARE:
                    break
                if _removed(Path(name)):
                    total -= taken
        if lock is not None:
            os.ftruncate(lock.fileno(), size)
    with _counting:  # looking at ten thousand files takes a while: some of the room is this process's for a while
        _room[here] = time.monotonic() + ROOM_S, (limit - total) // PROCESSES
    if total > limit and folder not in _told:
        _told.add(folder)
        _log.warning(
            'the shards in use take %.3f GB and the cache in %s may take %.3f GB: it grows over that, since none of '
            'them can go. Raise %s, or read fewer shards at a time.', total / 1e9, folder, limit / 1e9, LIMIT_VARIABLE,
        )  # fmt: skip


def _kept(folder: Path) -> list[tuple[float, str, int]]:
    """Time of last use, path and bytes of each copy, and of the space set aside for those on their way."""
    found = []
    for place in os.listdir(folder):
        if len(place) == 2:
            with suppress(FileNotFoundError), os.scandir(folder / place) as entries:
                for entry in entries:
                    if entry.name.endswith(('.arrow', '.lock')):
                        with suppress(FileNotFoundError):
                            about = entry.stat()
                            found.append((about.st_mtime, entry.path, about.st_size))
    return found


def _removed(path: Path) -> bool:
    """Remove a copy, or what a process that was killed left; False where it is held."""
    try:
        with open(path, 'rb+' if path.suffix == '.lock' else 'rb') as file:
            if not _locked(file, alone=True, wait=False):
                return False
            if path.suffix == '.lock' and not _gone(file):
                path.with_suffix('.part').unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return True
    except FileNotFoundError:
        return True
    except OSError:  # of another user, or mapped on Windows
        return False


def _locked(file: IO[Any], *, alone: bool, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _gone(file: IO[Any]) -> bool:
    """Whether an open file has no name any more."""
    return os.fstat(file.fileno()).st_nlink == 0


def _path(sha256: str) -> Path:
    return shard_cache_dir() / sha256[:2] / f'{sha256}.arrow'


def _keys_path(sha256: str) -> Path:
    return _path(sha256).with_suffix('.keys.arrow')
