"""The writer lock: one Postgres advisory lock per name, which works across machines and dies with its holder."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sql

from mmpipe.errors import BusyError, StoreError
from mmpipe.store.engine import start

_mine = threading.local()  # locks that this thread holds: name and connection


def check_locks() -> None:
    """Whether this thread still has the locks that it took; to be asked right before something is committed.

    A lock is gone when the connection that holds it breaks, as by a restart of Postgres, while other connections are
    made anew and would let the work go on beside another writer's.

    Raises:
        StoreError: one is gone.
    """
    for name, connection in getattr(_mine, 'held', ()):
        try:
            connection.execute(sql.select(1))
        except sql.exc.DBAPIError as error:
            raise StoreError(
                f"the lock on '{name}' is gone, since its connection to Postgres broke, as by a restart; another "
                f'process may be writing now. What was committed before stays: run the same again.'
            ) from error


@contextmanager
def writer_lock(name: str, *, wait_s: float = 60.0) -> Iterator[None]:
    """Hold the lock `name` while the block runs.

    Args:
        name: what is being written, such as the path of a table.
        wait_s: how long to wait for another holder, in seconds.

    Raises:
        BusyError: another process still holds it after `wait_s`.
    """
    start()
    from pixeltable.env import Env

    number = int.from_bytes(hashlib.blake2b(f'mmpipe:{name}'.encode(), digest_size=8).digest(), 'big', signed=True)
    engine = sql.create_engine(Env.get().db_url, poolclass=sql.pool.NullPool, isolation_level='AUTOCOMMIT')
    try:
        with engine.connect() as connection:
            deadline = time.monotonic() + wait_s
            while not connection.execute(sql.select(sql.func.pg_try_advisory_lock(number))).scalar():
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"another process has been writing '{name}' for over {wait_s:.0f} s. Wait for it, or stop it."
                    )
                time.sleep(0.1)
            _mine.held = [*getattr(_mine, 'held', ()), (name, connection)]
            try:
                yield
            finally:
                _mine.held = [each for each in _mine.held if each[1] is not connection]
    finally:
        engine.dispose()  # closing the connection releases the lock
