"""Files named by their content: there whole or not at all, and never written twice."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpipe.shards.root import Root, root_of


def sha256_of(data: bytes | memoryview) -> str:
    """Hex SHA-256 of some bytes.

    >>> sha256_of(b'')[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def put(root: str | Path | Root, folder: str, data: Any, suffix: str) -> tuple[str, str]:
    """Store bytes under their digest, whole or not at all.

    Args:
        root: snapshot root.
        folder: directory below it.
        data: bytes-like content.
        suffix: file name ending, with the dot.

    Returns:
        Path relative to the root, and the SHA-256. A whole file that is there already is kept.
    """
    root = root_of(root)
    sha = sha256_of(data)
    path = f'{folder}/{sha[:32]}{suffix}'
    if not root.renew(path, memoryview(data).nbytes):
        root.write(path, data, sha256=sha if folder == 'shards' else None)
    return path, sha


class NewFile:
    """A file that is written piece by piece, and named by its digest once it is whole.

    Args:
        root: snapshot root.
        folder: directory below it.
        suffix: file name ending, with the dot.
    """

    def __init__(self, root: str | Path | Root, folder: str, suffix: str) -> None:
        self.root, self.folder, self.suffix = root_of(root), folder, suffix
        self._temporary = self.root.workspace(folder) / f'.{secrets.token_hex(8)}.tmp'
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
        self.root.keep(self._temporary, path, size=self._size, sha256=sha)
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
