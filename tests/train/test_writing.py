"""What is written while training goes on: waited for, told, and never half."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from mmpipe.errors import RunError
from mmpipe.train.writing import Writing, wait_for_pieces, write_piece


def test_one_piece_of_work_at_a_time():
    writing, running, most = Writing(), [], []

    def work(given_up):
        running.append(1)
        most.append(len(running))
        running.pop()

    for _ in range(5):
        writing.start(work)
    writing.wait()
    assert most == [1] * 5


def test_an_error_is_raised_once_where_the_training_asks():
    writing = Writing()

    def broken(given_up):
        raise RunError('no disk')

    writing.start(broken)
    with pytest.raises(RunError, match='no disk'):
        writing.wait()
    writing.wait()


def test_closing_ends_the_wait_for_other_ranks(tmp_path):
    writing = Writing()
    writing.start(lambda given_up: wait_for_pieces(tmp_path, ['a', 'b'], patience_s=1e6, given_up=given_up) and None)
    writing.close()


def test_a_rank_that_writes_nothing_in_time_is_named(tmp_path):
    write_piece(tmp_path, 'a', lambda file: file.write_text('x') and None)
    with pytest.raises(RunError, match=r'Rank 1 has not written its piece of a checkpoint in 0\.05 s: no b in'):
        wait_for_pieces(tmp_path, ['a', 'b'], patience_s=0.05)


def test_a_rank_that_cannot_write_is_named_with_its_reason(tmp_path):
    def full(file):
        raise OSError(28, 'No space left on device')

    def other_rank():
        with suppress(RunError):
            write_piece(tmp_path, 'b', full)

    waiting = threading.Thread(target=other_rank)
    waiting.start()
    with pytest.raises(RunError, match=r'Rank 1 could not write .*No space left on device'):
        wait_for_pieces(tmp_path, ['a', 'b'], patience_s=20)
    waiting.join()
