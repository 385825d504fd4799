from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sql
from pixeltable.env import Env
from schemas import numbers

from mmpipe.errors import BusyError, StoreError
from mmpipe.store import replace_rows, table_of, writer_lock

HOLDER = """
import sys
from mmpipe.store import writer_lock
with writer_lock('table:shop/items'):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_holder_frees_the_lock(pixeltable_home):
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        with (
            pytest.raises(BusyError, match=r"'table:shop/items'.*Wait for it, or stop it"),
            writer_lock('table:shop/items', wait_s=0),
        ):
            pass
        with writer_lock('table:shop/others', wait_s=0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with writer_lock('table:shop/items', wait_s=30):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_an_error_in_the_block_frees_the_lock(pixeltable_home):
    with pytest.raises(ZeroDivisionError), writer_lock('x', wait_s=0):
        raise ZeroDivisionError
    with writer_lock('x', wait_s=0):
        pass


def test_nothing_is_committed_once_the_lock_is_lost(directory):
    """As when Postgres was restarted: Pixeltable connects anew, and would write beside whoever has the lock now."""
    table = table_of(numbers(directory).Numbers)

    def write():
        with writer_lock('table:shop/items', wait_s=0):
            replace_rows(table, [{'key': 'a', 'x': 1}], [])
            engine = sql.create_engine(Env.get().db_url, isolation_level='AUTOCOMMIT')
            with engine.connect() as connection:
                query = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
                assert connection.execute(sql.text(query)).all() == [(True,)]
            engine.dispose()
            replace_rows(table, [{'key': 'b', 'x': 2}], [])

    with pytest.raises(StoreError, match=r"lock on 'table:shop/items' is gone.*run the same again"):
        write()
    assert [row['key'] for row in table.select(table.key).collect()] == ['a']
    with writer_lock('table:shop/items', wait_s=0):
        replace_rows(table, [{'key': 'b', 'x': 2}], [])
