"""The writer lock: one Postgres advisory lock per name, which works across machines and dies with its holder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sql

from mmpipe.errors import BusyError
from mmpipe.store.engine import start


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
            yield
    finally:
        engine.dispose()  # closing the connection releases the lock
