"""A bounded cache of results on disk: one SQLite file, safe for several processes, the longest unused dropped first."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from mmpipe.errors import ConfigError
from mmpipe.home import cache_dir

LIMIT_VARIABLE = 'MMPIPE_RESULT_CACHE_GB'
CHECK_EVERY = 64  # results put between two looks at the size
_log = logging.getLogger(__name__)


def cache_limit() -> int:
    """Bytes that results may take on disk: `$MMPIPE_RESULT_CACHE_GB`; 0, no cache, where it is not set.

    Raises:
        ConfigError: it is no number from 0 on.
    """
    text = os.environ.get(LIMIT_VARIABLE, '0')
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float('inf'):
        raise ConfigError(f'{LIMIT_VARIABLE}={text}: a number of gigabytes is meant, such as 5; 0 for no cache.')
    return int(limit * 1e9)


@functools.cache
def _opened(path: Path, limit: int) -> ResultCache:
    return ResultCache(path, limit=limit)


def result_cache() -> ResultCache | None:
    """The project's cache of results, in `.mmpipe/cache`; None where there is to be none."""
    limit = cache_limit()
    return _opened(cache_dir() / 'results.sqlite', limit) if limit else None


class ResultCache:
    """Results by key.

    Args:
        path: SQLite file; made with its folder when missing.
        limit: bytes of results to keep at most.

    >>> import tempfile
    >>> cache = ResultCache(Path(tempfile.mkdtemp()) / 'results.sqlite', limit=1000)
    >>> cache.put(b'key', b'value'); cache.get(b'key'), cache.get(b'other')
    (b'value', None)
    """

    def __init__(self, path: Path, *, limit: int) -> None:
        self.path, self.limit = path, limit
        self._started = time.time_ns()
        self._put = 0
        self._told = False
        self._lock = threading.Lock()  # one connection, many threads
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._database.execute('PRAGMA journal_mode=WAL')
        self._database.execute('PRAGMA synchronous=NORMAL')  # a power cut may lose results, never damage the file
        self._database.execute(
            'CREATE TABLE IF NOT EXISTS results '
            '(key BLOB PRIMARY KEY, value BLOB NOT NULL, bytes INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID'
        )
        self._database.execute('CREATE INDEX IF NOT EXISTS by_use ON results (used)')

    def get(self, key: bytes) -> bytes | None:
        """A result; None where there is none. It counts as used."""
        try:
            with self._lock:
                row = self._database.execute('SELECT value FROM results WHERE key = ?', (key,)).fetchone()
                if row is None:
                    return None
                self._database.execute('UPDATE results SET used = ? WHERE key = ?', (time.time_ns(), key))
                return row[0]
        except sqlite3.Error as error:
            _log.warning('no result is read from %s (%s): it is computed instead', self.path, error)
            return None

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a result; what was longest unused goes when there is too much."""
        try:
            with self._lock:
                row = (key, value, len(value) + len(key), time.time_ns())
                self._database.execute('INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)', row)
                self._put += 1
                if self._put % CHECK_EVERY == 1:
                    self._shrink()
        except sqlite3.Error as error:  # a full disk or a damaged cache is no reason for a cell to fail
            _log.warning('a result is not kept in %s (%s); delete the file if this goes on', self.path, error)

    def size(self) -> int:
        """Bytes of results that are kept."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        return self._database.execute('SELECT coalesce(sum(bytes), 0) FROM results').fetchone()[0]

    def _shrink(self) -> None:
        size = self._size()
        while size > self.limit * 0.9 and size > 0:
            oldest = self._database.execute('SELECT key, bytes, used FROM results ORDER BY used LIMIT 256').fetchall()
            drop = []
            for key, taken, used in oldest:
                if size <= self.limit * 0.9:
                    break
                drop.append((key,))
                size -= taken
                if used > self._started and not self._told:
                    self._told = True
                    _log.warning(
                        'the result cache of %.1f GB is smaller than what this process computes, so that a second run '
                        'will compute some of it again: raise %s', self.limit / 1e9, LIMIT_VARIABLE,
                    )  # fmt: skip
            if not drop:
                return
            self._database.executemany('DELETE FROM results WHERE key = ?', drop)
