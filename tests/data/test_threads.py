"""Threads that make one batch together, helped by the one that asks for it."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.depth import Depth
from mmpipe.data.threads import PIECES, ThreadReader
from mmpipe.errors import DataError
from mmpipe.shards import Block, Field, write_snapshot


class Meeting:
    """A decoder whose samples wait for each other: only threads that work at once get through."""

    shape, rest, dtype, draws = (1,), (), 'int64', 0

    def __init__(self, parties: int) -> None:
        self.barrier, self.threads = threading.Barrier(parties, timeout=20), set()

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        self.barrier.wait()
        assert out is not None
        out[0] = int(data)
        return out


class Choosy:
    """Refuses some numbers."""

    shape, rest, dtype, draws = (1,), (), 'int64', 0

    def __init__(self, bad) -> None:
        self.bad = bad

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if int(data) in self.bad:
            raise DataError(f'{data.decode()} is not wanted.')
        assert out is not None
        out[0] = int(data)
        return out


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    block = Block(keys=[f'k{i}' for i in range(40)], columns={'number': [str(i).encode() for i in range(40)]})
    return write_snapshot(tmp_path_factory.mktemp('numbers'), [Field(name='number', kind='binary')], block).rows()


@pytest.mark.parametrize('threads', [1, 3])
def test_a_batch_is_made_by_all_threads_at_once_and_by_who_waits_for_it(rows, threads):
    everybody = threads + 1
    decoder = Meeting(everybody)
    reader = ThreadReader(BatchTask(rows, ['number'], decode={'number': decoder}), threads=threads, allocate=np.empty)
    count = everybody * PIECES
    reader.submit(Request(np.arange(count)))  # as many samples as pieces
    batch = reader.next()
    reader.close()
    assert batch['number'][:, 0].tolist() == list(range(count))
    assert decoder.threads == {threading.current_thread().name, *(f'mmpipe-read_{i}' for i in range(threads))}


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_of_several_samples_that_fail_the_first_is_named(rows, threads):
    task = BatchTask(rows, ['number'], decode={'number': Choosy({11, 12, 17, 30})})
    reader = ThreadReader(task, threads=threads, allocate=np.empty)
    for _ in range(20):
        reader.submit(Request(np.arange(40)))
        with pytest.raises(DataError, match=r"'k11'.*11 is not wanted"):
            reader.next()
    reader.submit(Request(np.arange(10)))
    assert len(reader.next()['number']) == 10  # and goes on
    reader.close()


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_failures_that_are_masked_come_in_the_order_of_rows(rows, threads):
    task = BatchTask(rows, ['number'], decode={'number': Choosy({3, 20, 21, 39})}, on_error='mask')
    reader = ThreadReader(task, threads=threads, allocate=np.empty)
    reader.submit(Request(np.arange(40)))
    batch = reader.next()
    reader.close()
    assert [key for key, _, _ in batch['_failed']] == ['k3', 'k20', 'k21', 'k39']
    assert np.flatnonzero(~batch['_mask']['number']).tolist() == [3, 20, 21, 39]


def test_an_empty_batch_and_one_without_fields_are_batches(rows):
    for fields, positions in ((['number'], np.arange(0)), ([], np.arange(3))):
        reader = ThreadReader(BatchTask(rows, fields), threads=2, allocate=np.empty)
        reader.submit(Request(positions))
        assert reader.next()['_key'] == [f'k{i}' for i in positions]
        reader.close()


def test_a_reader_that_nobody_holds_ends_its_threads(rows):
    reader = ThreadReader(BatchTask(rows, ['number']), threads=2, allocate=np.empty)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith('mmpipe-read')]
    del reader
    for thread in mine:
        thread.join(10)
    assert not any(thread.is_alive() for thread in mine)


def test_threads_that_make_batches_together_need_two_of_them_and_one_more_for_each_that_is_late():
    depth = Depth(4, together=True)
    for _ in range(50):
        depth.note(made_s=1.0, used_s=0.01, waited_s=0.2)  # they cannot keep up: more would not help
    assert depth.now == 2
    for _ in range(50):
        depth.note(made_s=1.0, used_s=1.0, waited_s=0.0)
    depth.note(made_s=1.0, used_s=1.0, waited_s=0.5)
    assert depth.now == 3


SCRIPT = """
import sys, tempfile
import numpy as np
from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.threads import ThreadReader
from mmpipe.shards import Block, Field, write_snapshot

class Long:
    shape, rest, dtype, draws = (1,), (), 'int64', 0
    def decode(self, data, draws, out):
        import torch
        for _ in range(400):  # in the code of a library, out of which a thread that is ended cannot be unwound
            torch.ones(64, 64) @ torch.ones(64, 64)
        return out

block = Block(keys=[f'k{i}' for i in range(40)], columns={'number': [b'1'] * 40})
rows = write_snapshot(tempfile.mkdtemp(), [Field(name='number', kind='binary')], block).rows()
reader = ThreadReader(BatchTask(rows, ['number'], decode={'number': Long()}), threads=3, allocate=np.empty)
for _ in range(50):
    reader.submit(Request(np.arange(40)))
reader.next()
print('ends', flush=True)
"""


def test_a_program_that_ends_in_the_middle_of_batches_ends_well_and_soon():
    for _ in range(5):
        done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, 'ends', '')
