"""Local copies of remote shards, named by their digests: what is mapped when a snapshot of an object store is read.

    home/cache/shards/<2 digits>/<sha256>.arrow     a whole shard, checked before it got this name; never changed
    home/cache/shards/.<token>.tmp                  one on its way

Safe for several processes: a file is renamed into place when it is whole, and two that fetch the same one write the
same. Safe to delete while nothing reads it; what is needed again is fetched again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from mmpipe.durable import make_folders, sync_file
from mmpipe.errors import ShardError
from mmpipe.home import shard_cache_dir
from mmpipe.shards.root import Load


def find(sha256: str, size: int) -> Path | None:
    """The copy of a shard; None where there is none, or not all of it.

    >>> find('0' * 64, 1) is None
    True
    """
    path = _path(sha256)
    try:
        return path if os.stat(path).st_size == size else None
    except FileNotFoundError:
        return None


def workspace() -> Path:
    """The folder in which copies are written before they get their names."""
    make_folders(shard_cache_dir())
    return shard_cache_dir()


def temporary() -> Path:
    """A name for a copy on its way that nobody else has."""
    return workspace() / f'.{secrets.token_hex(8)}.tmp'


def keep(file: Path, sha256: str) -> Path:
    """Make a finished file of the workspace the copy of a shard; its bytes are on the disk already."""
    path = _path(sha256)
    path.parent.mkdir(exist_ok=True)
    os.replace(file, path)
    return path


def fetch(sha256: str, size: int, load: Load, *, url: str) -> Path:
    """The copy of a shard; it is loaded where there is none.

    Args:
        sha256: digest of its content.
        size: its bytes.
        load: called with the path of a file to fill.
        url: what is loaded, for messages.

    Raises:
        ShardError: it is missing, or its content is another than was written.
    """
    found = find(sha256, size)
    if found is not None:
        return found
    file = temporary()
    try:
        load(file)
        with open(file, 'rb') as whole:
            right = os.stat(file).st_size == size and hashlib.file_digest(whole, 'sha256').hexdigest() == sha256
        if not right:
            raise ShardError(
                f"shard '{url}' does not match its digest. Restore it, or write the snapshot again into a new root."
            )
        sync_file(file)
        return keep(file, sha256)
    except FileNotFoundError:
        raise ShardError(
            f"shard '{url}' is missing. Restore it, or write the snapshot again into a new root."
        ) from None
    finally:
        file.unlink(missing_ok=True)


def _path(sha256: str) -> Path:
    return shard_cache_dir() / sha256[:2] / f'{sha256}.arrow'
