"""Files named by their content: there whole or not at all, and never written twice."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpipe.durable import make_folders, sync_directory, write_bytes

RENEW_S = 600.0  # seconds after which a file that is taken again is made young


def sha256_of(data: bytes | memoryview) -> str:
    """Hex SHA-256 of some bytes.

    >>> sha256_of(b'')[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def put(root: Path, folder: str, data: Any, suffix: str) -> tuple[str, str]:
    """Store bytes under their digest, whole or not at all.

    Args:
        root: snapshot root.
        folder: directory below it.
        data: bytes-like content.
        suffix: file name ending, with the dot.

    Returns:
        Path relative to the root, and the SHA-256. A whole file that is there already is kept.
    """
    sha = sha256_of(data)
    path = f'{folder}/{sha[:32]}{suffix}'
    target = root / path
    if not renew(target, memoryview(data).nbytes):
        write_bytes(target, data)
    return path, sha


def renew(path: Path, size: int) -> bool:
    """Whether a file of that size is there; if so it counts as young again, for it is about to be referred to.

    >>> import tempfile
    >>> renew(Path(tempfile.mkdtemp()) / 'a', 1)
    False
    """
    try:
        found = os.stat(path)
        if found.st_size == size and time.time() - found.st_mtime > RENEW_S:
            os.utime(path)
    except FileNotFoundError:
        return False
    return found.st_size == size


class NewFile:
    """A file that is written piece by piece, and named by its digest once it is whole.

    Args:
        root: snapshot root.
        folder: directory below it.
        suffix: file name ending, with the dot.
    """

    def __init__(self, root: Path, folder: str, suffix: str) -> None:
        self.root, self.folder, self.suffix = root, folder, suffix
        make_folders(root / folder)
        self._temporary = root / folder / f'.{secrets.token_hex(8)}.tmp'
        self._file = open(self._temporary, 'xb')  # noqa: SIM115 (closed by keep or abandon)
        self._digest = hashlib.sha256()
        self._size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """What file objects have; bytes are on the disk after `keep`."""

    def keep(self) -> tuple[str, str, int]:
        """Give the file its name. Returns the path relative to the root, the SHA-256 and the size in bytes."""
        sha = self._digest.hexdigest()
        path = f'{self.folder}/{sha[:32]}{self.suffix}'
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        target = self.root / path
        if renew(target, self._size):
            self._temporary.unlink()
        else:
            os.replace(self._temporary, target)
            sync_directory(target.parent)
        return path, sha, self._size

    def abandon(self) -> None:
        """Remove what was written, unless it was kept."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def table_bytes(table: pa.Table) -> pa.Buffer:
    """An Arrow table as one uncompressed IPC file, with one record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return sink.getvalue()
