"""Downloaded objects in a local folder, named by their content; Pixeltable refers to files and does not copy them.

home/media/<2 digits>/<digest><ending>    a file, never changed
home/media/known.sqlite                   URL to the identity under which it was downloaded last, and the file
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

SCHEMA = 'create table if not exists known (url text primary key, identity text not null, file text not null)'


class Objects:
    """The folder. Safe for several threads and processes: a file is renamed into place when it is whole.

    Args:
        folder: `mmpipe.home.media_dir()`, or another.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     objects = Objects(Path(folder))
    ...     file = objects.put('s3://bucket/a.txt', 'version 1', [b'some ', b'bytes'])
    ...     objects.find('s3://bucket/a.txt') == ('version 1', file), file.suffix, file.read_bytes()
    (True, '.txt', b'some bytes')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()

    def find(self, url: str) -> tuple[str, Path] | None:
        """Identity and file of a URL that was downloaded before, if the file is still there."""
        with self._open() as known:
            row = known.execute('select identity, file from known where url = ?', (url,)).fetchone()
        if row is None or not (self.folder / row[1]).is_file():
            return None
        return row[0], self.folder / row[1]

    def put(self, url: str, identity: str, pieces: Iterable[bytes]) -> Path:
        """Write a URL's content, and note under which identity; a content that is there already is kept as it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(digest_size=16)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix='.part-')
        try:
            with os.fdopen(handle, 'wb') as file:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            name = digest.hexdigest()
            target = self.folder / name[:2] / f'{name}{ending(url)}'
            if not target.is_file():
                target.parent.mkdir(exist_ok=True)
                os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        with self._open() as known:
            row = (url, identity, str(target.relative_to(self.folder)))
            known.execute('insert or replace into known values (?, ?, ?)', row)
        return target

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, contextlib.closing(sqlite3.connect(self.folder / 'known.sqlite', timeout=60)) as known:
            known.execute(SCHEMA)
            yield known
            known.commit()


def ending(url: str) -> str:
    """The ending of a URL's path, by which Pixeltable and decoders go.

    >>> ending('https://host/a.JPG?size=3'), ending('s3://bucket/a.b/c')
    ('.jpg', '')
    """
    path = url.partition('://')[2].partition('?')[0].partition('#')[0]
    found = re.search(r'\.[A-Za-z0-9]{1,8}$', path.rsplit('/', 1)[-1])
    return found[0].lower() if found else ''
