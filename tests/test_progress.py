"""What a user sees while a stage runs."""

from __future__ import annotations

import io
import re

import pytest

from mmpipe import progress
from mmpipe.progress import StageProgress


def test_without_a_terminal_a_stage_ends_in_one_plain_line() -> None:
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('ingest'):
        for done in range(1, 101):
            show('ingest', done, 100, 'rows')
    assert out.getvalue().startswith('ingest: 100/100 rows, ')
    assert out.getvalue().count('\n') == 1
    assert '\x1b' not in out.getvalue()


def test_a_long_stage_says_how_far_it_is_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(clock)))
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('ingest'):
        show('ingest', 50, 100, 'rows')
    assert out.getvalue().splitlines()[0] == 'ingest: 50/100 rows, 5 rows/s, 10 s left'


def test_on_a_terminal_the_line_is_live_and_the_last_one_stays() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    show = StageProgress(out)
    with show.stage('train'):
        show('train', 1, 2, 'rows')
    plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', out.getvalue())
    assert plain != out.getvalue()
    assert plain.splitlines()[-1].startswith('train: 1/2 rows, ')


def test_seconds_of_a_stage_add_up_and_an_error_ends_it() -> None:
    show = StageProgress(io.StringIO())
    with pytest.raises(ValueError, match='stop'), show.stage('ingest'):
        raise ValueError('stop')
    with show.stage('ingest'):
        pass
    assert set(show.seconds) == {'ingest'}
