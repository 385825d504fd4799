"""Writing files so that a crash leaves the old version or the new one, never half of one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync_directory(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; nothing where directories cannot be opened (Windows).

    >>> import tempfile
    >>> sync_directory(Path(tempfile.mkdtemp()))
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'a'
    >>> _ = path.write_bytes(b'x'); sync_file(path)
    """
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


def make_folders(folder: Path) -> None:
    """Make a folder and those above it; the new entries survive a power cut.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / 'a' / 'b'
    >>> make_folders(folder); folder.is_dir()
    True
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)


def write_bytes(path: Path, data: Any) -> None:
    """Write bytes beside `path`, then rename them over `path`; both are on the disk when this returns.

    Args:
        path: file to create or replace; its folder is made.
        data: bytes-like.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'a'
    >>> write_bytes(path, b'x'); path.read_bytes()
    b'x'
    """
    make_folders(path.parent)
    temporary = _beside(path)
    try:
        with open(temporary, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, as `write_bytes` does.

    Args:
        path: file to create or replace.
        content: anything `json.dumps` takes, without NaN (which is not JSON).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'a.json'
    >>> write_json(path, {'b': 1}); path.read_text()
    '{\\n  "b": 1\\n}\\n'
    """
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + '\n').encode())


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `path` when the block ends without an error.

    Every file in it is flushed to the disk before the rename, so a directory under its final name is complete.

    Args:
        path: the final name; must not exist as a non-empty directory.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'checkpoint'
    >>> with new_directory(path) as folder:
    ...     _ = (folder / 'a').write_text('x')
    >>> [file.name for file in path.iterdir()]
    ['a']
    """
    make_folders(path.parent)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync_file(file)
        sync_directory(temporary)
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name that no other writer has, on whichever machine it runs."""
    return path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
