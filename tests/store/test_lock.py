from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mmpipe.errors import BusyError
from mmpipe.store import writer_lock

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
